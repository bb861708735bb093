/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Headers of one frame by direct access, as XDP has it: who sends, and of TCP the ports and flags. Pure: no maps, no
 * helpers, so the host compiler builds it too.
 *
 * packet.h reads copied windows for TC, which is asked about whole flows; here only a source is judged, so what cannot
 * be read beyond the source address is no reason to drop: FRAME_SOURCE_ONLY. A later fragment has no TCP header and is
 * that as well.
 */
#ifndef SALLYPORT_FRAME_H
#define SALLYPORT_FRAME_H

#include "packet.h"

enum frame_status {
	FRAME_NOT_IP = 0,
	FRAME_SOURCE_ONLY = 1, /* the source, and the transport unless it is 0 */
	FRAME_TRANSPORT = 2,   /* TCP or UDP: with ports */
	FRAME_UNREADABLE = 3,  /* the source, but what follows contradicts itself or is cut short */
	FRAME_NO_SOURCE = 4,   /* cut short before the source address */
};

struct frame {
	__u8 address[16];
	__u64 at;   /* FRAME_FORGET */
	__u64 stop; /* where the packet ends as its IP header has it: padding of short frames is no header */
	__u16 sport;
	__u16 dport;
	__u8 transport;
	__u8 tcp_flags;
	__u8 is_ipv6;
	__u8 is_neighbour_discovery; /* without it there is no link */
};

/* Beyond every header that is read: two tags, IPv6, and PACKET_EXTENSIONS extensions of at most 2,048 bytes. */
#define FRAME_FAR 0x3fff

/* A value that has been in map memory is unknown to the verifier, so states that differ only in its past merge: 3 tags
 * and 3 kinds of extension in 6 places took 28,000 instructions otherwise. */
#define FRAME_FORGET(f, x)                                  \
	do {                                                \
		*(volatile __u64 *)&(f)->at = (x);          \
		(x) = *(volatile __u64 *)&(f)->at;          \
		asm volatile("" : "+r"(x));                 \
		(x) &= FRAME_FAR;                           \
	} while (0)

static inline __attribute__((always_inline)) int frame_transport(const __u8 *data, const __u8 *end, __u64 o,
								 struct frame *f)
{
	const __u8 *at;

	FRAME_FORGET(f, o);
	at = data + o;
	if (f->transport != PROTO_TCP && f->transport != PROTO_UDP)
		return FRAME_SOURCE_ONLY;
	if (at + 8 > end || o + 8 > f->stop)
		return FRAME_UNREADABLE;
	f->sport = (__u16)(((__u32)at[0] << 8) | at[1]);
	f->dport = (__u16)(((__u32)at[2] << 8) | at[3]);
	if (f->transport == PROTO_UDP)
		return FRAME_TRANSPORT;
	if (at + 20 > end || o + 20 > f->stop || at[12] >> 4 < 5)
		return FRAME_UNREADABLE;
	f->tcp_flags = at[13];
	return FRAME_TRANSPORT;
}

/* `bytes`: of the whole frame; `o`: where the header begins. */
static inline __attribute__((always_inline)) int frame_ipv4(const __u8 *data, const __u8 *end, __u64 bytes, __u64 o,
							    struct frame *f)
{
	const __u8 *at = data + o;
	__u64 header, total;

	if (at + 20 > end)
		return FRAME_NO_SOURCE;
	f->address[10] = 0xff;
	f->address[11] = 0xff;
	__builtin_memcpy(f->address + 12, at + 12, 4);
	header = (__u64)(at[0] & 15) * 4;
	total = ((__u64)at[2] << 8) | at[3];
	if (at[0] >> 4 != 4 || header < 20 || (total && total < header))
		return FRAME_UNREADABLE;
	f->stop = total ? o + total : bytes; /* 0: BIG TCP */
	f->transport = at[9];
	if ((at[6] & 0x1f) | at[7])
		return FRAME_SOURCE_ONLY;
	return frame_transport(data, end, o + header, f);
}

static inline __attribute__((always_inline)) int frame_ipv6(const __u8 *data, const __u8 *end, __u64 bytes, __u64 o,
							    struct frame *f)
{
	const __u8 *at = data + o;
	__u64 length;
	__u8 hops;

	if (at + 40 > end)
		return FRAME_NO_SOURCE;
	f->is_ipv6 = 1;
	__builtin_memcpy(f->address, at + 8, 16);
	if (at[0] >> 4 != 6)
		return FRAME_UNREADABLE;
	length = ((__u64)at[4] << 8) | at[5];
	f->stop = length ? o + 40 + length : bytes; /* 0: a jumbogram or BIG TCP */
	f->transport = at[6];
	hops = at[7];
	o += 40;
#pragma unroll
	for (int i = 0; i < PACKET_EXTENSIONS; i++) {
		if (!packet_is_extension(f->transport))
			break;
		FRAME_FORGET(f, o);
		at = data + o;
		if (at + 8 > end || o + 8 > f->stop)
			return FRAME_UNREADABLE;
		if (f->transport == PROTO_FRAGMENT) {
			length = 8;
			if (at[2] | (at[3] & 0xf8)) {
				f->transport = at[0];
				return FRAME_SOURCE_ONLY;
			}
		} else if (f->transport == PROTO_AUTHENTICATION) {
			length = ((__u64)at[1] + 2) * 4;
		} else {
			length = ((__u64)at[1] + 1) * 8;
		}
		f->transport = at[0];
		o += length;
	}
	if (packet_is_extension(f->transport))
		return FRAME_UNREADABLE;
	FRAME_FORGET(f, o);
	at = data + o;
	if (f->transport == PROTO_ICMPV6 && hops == 255 && at + 1 <= end)
		f->is_neighbour_discovery = at[0] >= 133 && at[0] <= 137;
	return frame_transport(data, end, o, f);
}

/* Read the frame of `bytes` bytes between `data` and `end`, which begins with an Ethernet header. `f` is zeroed by the
 * caller. */
static inline __attribute__((always_inline)) int frame_parse(const __u8 *data, const __u8 *end, __u64 bytes,
							     struct frame *f)
{
	__u64 o = 14;
	__u32 type;

	if (data + 14 > end)
		return FRAME_NOT_IP;
	type = ((__u32)data[12] << 8) | data[13];
#pragma unroll
	for (int i = 0; i < 2; i++) {
		if (type != 0x8100 && type != 0x88a8)
			break;
		if (data + o + 4 > end)
			return FRAME_NOT_IP;
		type = ((__u32)data[o + 2] << 8) | data[o + 3];
		o += 4;
	}
	FRAME_FORGET(f, o);
	if (type == 0x0800)
		return frame_ipv4(data, end, bytes, o, f);
	if (type == 0x86dd)
		return frame_ipv6(data, end, bytes, o, f);
	return FRAME_NOT_IP;
}

#endif
