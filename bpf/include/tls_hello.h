/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The server name of a ClientHello that lies whole in one buffer (RFC 8446 section 4.1.2, RFC 6066 section 3).
 *
 * Two answers only: the one plain name, or HELLO_ENGINE. Whatever is incomplete, encrypted, doubled or contradicts its
 * own lengths is the engine's to judge: the kernel never guesses. A hello is HELLO_NAMED only where the engine would
 * call its name complete, so that a verdict by name never covers a hello that policy would have seen as malformed;
 * tests/host_c holds the two parsers to it. Where the kernel is stricter, the price is one held packet.
 */
#ifndef SALLYPORT_TLS_HELLO_H
#define SALLYPORT_TLS_HELLO_H

#include "abi.h"

#define HELLO_WINDOW 4096
#define HELLO_MASK (HELLO_WINDOW - 1)
#define HELLO_EXTENSIONS 32
#define HELLO_PROTOCOLS 16 /* of the ALPN list */

#define EXTENSION_SERVER_NAME 0
#define EXTENSION_SIGNATURES 13
#define EXTENSION_ALPN 16
#define EXTENSION_VERSIONS 43
#define EXTENSION_ECH 0xfe0d

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
	__u64 alpn_offset; /* of the first protocol; 0 without the extension */
	__u64 alpn_end;
	__u64 seen[8]; /* extension types met so far, see hello_seen() */
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

/* Mark an extension type; nonzero if it was marked before. RFC 8446 section 4.2 forbids a second one of a type. Types
 * below 256 have a bit each, the others share 256 bits by their middle byte: that keeps the sixteen GREASE types
 * (RFC 8701) and all registered ones apart. Two types on one bit cost a look by the engine. */
static inline __attribute__((always_inline)) int hello_seen(struct hello *h, __u64 type)
{
	__u64 slot = type < 256 ? type : 256 + ((type >> 4) & 255);
	__u64 bit = 1ULL << (slot & 63), before = h->seen[(slot >> 6) & 7];

	h->seen[(slot >> 6) & 7] = before | bit;
	return (before & bit) != 0;
}

/* Do the lengths inside the extension at `e` with `l` bytes of data add up? For the four that the engine reads too. */
static inline __attribute__((always_inline)) int hello_extension(struct hello *h, const __u8 *e, __u64 type, __u64 o,
								 __u64 l)
{
	__u64 inner = ((__u64)e[4] << 8) | e[5];

	if (type == EXTENSION_SERVER_NAME) {
		__u64 name = ((__u64)e[7] << 8) | e[8];

		h->name_offset = o + 9;
		h->name_length = name;
		return !e[6] && inner == name + 3 && l == name + 5 && name && name <= NAME_MAX_KERNEL;
	}
	if (type == EXTENSION_SIGNATURES)
		return l >= 4 && inner == l - 2 && !(l & 1);
	if (type == EXTENSION_VERSIONS)
		return l >= 3 && e[4] == l - 1 && (l & 1);
	if (type == EXTENSION_ALPN) {
		h->alpn_offset = o + 6;
		h->alpn_end = o + 4 + l;
		return l >= 4 && inner == l - 2;
	}
	return 1;
}

/* Is every protocol of the ALPN list there and not empty (RFC 7301 section 3.1)? */
static inline __attribute__((always_inline)) int hello_alpn(struct hello *h)
{
	__u64 o = h->alpn_offset, end = h->alpn_end;

	if (!o)
		return 1;
	HELLO_FORGET(h, end);
	_Pragma("clang loop unroll(disable)") for (int i = 0; i < HELLO_PROTOCOLS; i++)
	{
		__u64 l;

		HELLO_FORGET(h, o);
		if (o >= end)
			break;
		l = HELLO_U8(h->bytes, o);
		if (!l)
			return 0;
		o += 1 + l;
	}
	return o == end;
}

/* 0x80 in every byte of x from `low` to `high`, both below 0x80. */
#define HELLO_BYTES(c) (0x0101010101010101ULL * (c))
#define HELLO_RANGE(x, low, high)                                                                         \
	((((x) & HELLO_BYTES(0x7f)) + HELLO_BYTES(0x80 - (low))) &                                        \
	 ~(((x) & HELLO_BYTES(0x7f)) + HELLO_BYTES(0x7f - (high))) & ~(x) & HELLO_BYTES(0x80))

/*
 * Is it a host name that the engine would take as it stands: letters, digits, '-', '_', labels of 1 to 63 bytes, no dot
 * at its end? A NUL would be the worst of the rest: in a key it ends an exact name, so "evil\0example.com" would meet
 * example.com's verdict.
 *
 * Eight bytes at a time, or the verifier needs 100,000 instructions for it. Two liberties: a label of 56 bytes and more
 * may go to the engine (a longer one than 63 always does: seven words without a dot lie in it); and a last label that
 * is a number, which makes the name an address to the engine, passes, because no key ends in one.
 */
static inline __attribute__((always_inline)) int hello_plain(struct hello *h)
{
	__u64 length = h->name_length, offset = h->name_offset, bad = 0, before = 0x80, without = 0;

	HELLO_FORGET(h, length);
	HELLO_FORGET(h, offset);
	if (HELLO_U8(h->bytes, offset + length - 1) == '.')
		return 0;
	_Pragma("clang loop unroll(disable)") for (__u64 i = 0; i < NAME_KEY_BYTES; i += 8)
	{
		__u64 x, here = HELLO_BYTES(0x80), dots;

		if (i >= length)
			break;
		x = *(const __u64 *)(h->bytes + ((offset + i) & HELLO_MASK));
		if (length - i < 8)
			here >>= (64 - 8 * (length - i)) & 63;
		HELLO_FORGET(h, here);
		dots = HELLO_RANGE(x, '.', '.') & here;
		bad |= here & ~(HELLO_RANGE(x, '-', '.') | HELLO_RANGE(x, '0', '9') | HELLO_RANGE(x, '_', '_') |
				HELLO_RANGE(x | HELLO_BYTES(0x20), 'a', 'z'));
		bad |= dots & (dots << 8 | before); /* an empty label */
		before = dots >> 56;
		without = dots ? 0 : without + 1;
		bad |= without >= 7;
		HELLO_FORGET(h, bad);
		HELLO_FORGET(h, before);
		HELLO_FORGET(h, without);
	}
	return !bad;
}

/* Find the name in the first `n` bytes of h->bytes, n <= HELLO_WINDOW. On HELLO_NAMED, name_offset and name_length
 * say where; 1 <= name_length <= NAME_MAX_KERNEL. */
static inline __attribute__((always_inline)) int hello_name(struct hello *h, __u64 n)
{
	const __u8 *b = h->bytes;
	__u64 o, l, end;

	h->name_length = 0;
	h->alpn_offset = 0;
	__builtin_memset(h->seen, 0, sizeof(h->seen));
	HELLO_FORGET(h, n);
	/* A handshake record with a ClientHello of version 3.x and a session id of at most 32 bytes. */
	if (n < 44 || b[0] != 22 || b[1] != 3 || b[5] != 1 || b[9] != 3 || b[43] > 32)
		return HELLO_ENGINE;
	l = ((__u64)b[3] << 8) | b[4];
	end = ((__u64)b[6] << 16) | ((__u64)b[7] << 8) | b[8];
	/* One record that holds exactly this one handshake message, all of it here. */
	if (l != end + 4 || 5 + l > n || 5 + l > HELLO_WINDOW)
		return HELLO_ENGINE;
	end += 9;
	o = 44 + (__u64)b[43];
	l = HELLO_U16(b, o); /* cipher suites, two bytes each */
	if (!l || (l & 1))
		return HELLO_ENGINE;
	o += 2 + l;
	l = HELLO_U8(b, o); /* compression methods */
	if (!l)
		return HELLO_ENGINE;
	o += 1 + l;
	l = HELLO_U16(b, o);
	o += 2;
	if (o + l != end)
		return HELLO_ENGINE;
	HELLO_FORGET(h, end);
	_Pragma("clang loop unroll(disable)") for (int i = 0; i < HELLO_EXTENSIONS; i++)
	{
		const __u8 *e;
		__u64 type;

		HELLO_FORGET(h, o);
		if (o + 4 > end)
			break;
		e = b + (o & HELLO_MASK);
		type = ((__u64)e[0] << 8) | e[1];
		l = ((__u64)e[2] << 8) | e[3];
		/* Under encrypted_client_hello the name here is not the name. */
		if (type == EXTENSION_ECH || hello_seen(h, type) || !hello_extension(h, e, type, o, l))
			return HELLO_ENGINE;
		o += 4 + l;
	}
	return o == end && h->name_length && hello_alpn(h) && hello_plain(h) ? HELLO_NAMED : HELLO_ENGINE;
}

#endif
