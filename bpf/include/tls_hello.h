/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The server name of a ClientHello that lies whole in one buffer (RFC 8446 section 4.1.2, RFC 6066 section 3).
 *
 * Two answers only: the one plain name, or HELLO_ENGINE. Whatever is incomplete, encrypted, doubled or contradicts its
 * own lengths is the engine's to judge: the kernel never guesses. So every length must add up exactly, as it does for
 * the server that will read the same bytes.
 */
#ifndef SALLYPORT_TLS_HELLO_H
#define SALLYPORT_TLS_HELLO_H

#include "abi.h"

#define HELLO_WINDOW 4096
#define HELLO_MASK (HELLO_WINDOW - 1)
#define HELLO_EXTENSIONS 32

enum hello_status {
	HELLO_ENGINE = 0,
	HELLO_NAMED = 1,
};

/* One per CPU, in map memory. `bytes` has room behind the mask for the widest fixed read. */
struct hello {
	__u8 bytes[HELLO_WINDOW + 512];
	__u64 forget;
	__u64 name_offset;
	__u64 name_length;
};

#ifdef SALLYPORT_KERNEL
/*
 * clang 14 keeps a value's history across the loop, and kernels before 6.12 then explore one state for each of its
 * pasts: 847,000 instructions for this walk. Map memory is not tracked, so a store and a load make an unknown scalar
 * of it and the states merge: 25,000.
 */
#define HELLO_FORGET(h, x)                                   \
	do {                                                 \
		*(volatile __u64 *)&(h)->forget = (x);       \
		(x) = *(volatile __u64 *)&(h)->forget;       \
	} while (0)
#else
#define HELLO_FORGET(h, x) ((void)(h), (void)(x))
#endif

#define HELLO_U8(b, o) ((__u64)(b)[(o) & HELLO_MASK])
#define HELLO_U16(b, o) ((HELLO_U8(b, o) << 8) | (b)[((o) & HELLO_MASK) + 1])

/* Find the name in the first `n` bytes of h->bytes, n <= HELLO_WINDOW. On HELLO_NAMED, name_offset and name_length
 * say where; 1 <= name_length <= NAME_MAX_KERNEL. */
static inline __attribute__((always_inline)) int hello_name(struct hello *h, __u64 n)
{
	const __u8 *b = h->bytes;
	__u64 o, l, end;

	h->name_length = 0;
	HELLO_FORGET(h, n);
	if (n < 44 || b[0] != 22 || b[1] != 3 || b[5] != 1)
		return HELLO_ENGINE;
	l = ((__u64)b[3] << 8) | b[4];
	end = ((__u64)b[6] << 16) | ((__u64)b[7] << 8) | b[8];
	/* One record that holds exactly this one handshake message, all of it here. */
	if (l != end + 4 || 5 + l > n || 5 + l > HELLO_WINDOW)
		return HELLO_ENGINE;
	end += 9;
	o = 44 + (__u64)b[43];
	o += 2 + HELLO_U16(b, o);
	o += 1 + HELLO_U8(b, o);
	l = HELLO_U16(b, o);
	o += 2;
	if (o + l != end)
		return HELLO_ENGINE;
	HELLO_FORGET(h, end);
	_Pragma("clang loop unroll(disable)") for (int i = 0; i < HELLO_EXTENSIONS; i++)
	{
		const __u8 *e;

		HELLO_FORGET(h, o);
		if (o + 4 > end)
			break;
		e = b + (o & HELLO_MASK);
		l = ((__u64)e[2] << 8) | e[3];
		if (e[0] == 0xfe && e[1] == 0x0d) /* encrypted_client_hello: the name here is not the name */
			return HELLO_ENGINE;
		if (!e[0] && !e[1]) {
			__u64 name = ((__u64)e[7] << 8) | e[8];
			__u64 list = ((__u64)e[4] << 8) | e[5];

			if (h->name_length || e[6] || list != name + 3 || l != name + 5 || !name || name > NAME_MAX_KERNEL)
				return HELLO_ENGINE;
			h->name_offset = o + 9;
			h->name_length = name;
		}
		o += 4 + l;
	}
	return o == end && h->name_length ? HELLO_NAMED : HELLO_ENGINE;
}

#endif
