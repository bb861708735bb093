/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Headers of one packet, read from a copied window of its first bytes. Pure: no maps, no helpers, so the host compiler
 * builds and fuzzes it too.
 *
 * The window is zero-filled beyond what the packet has, and every step is checked against the true length, so a
 * truncated packet is PACKET_MALFORMED and never half a header.
 */
#ifndef SALLYPORT_PACKET_H
#define SALLYPORT_PACKET_H

#include "abi.h"

#define PACKET_WINDOW 128 /* power of two: the mask below is what the verifier believes */
#define PACKET_EXTENSIONS 6
#define PACKET_OPTIONS 16

enum packet_status {
	PACKET_OK = 0,
	PACKET_NOT_IP = 1,
	PACKET_LINK_CONTROL = 2, /* neighbour discovery, multicast membership: without it there is no network */
	PACKET_FRAGMENT = 3,	 /* not the first one: no ports in it */
	PACKET_MALFORMED = 4,
};

struct packet {
	struct tuple tuple;
	__u32 payload; /* offset of the transport's payload from the start of the frame */
	__u32 length;  /* bytes of payload */
	__u32 seq;	/* TCP */
	__u8 tcp_flags;
	__u8 pad[3];
};

#define TCP_FLAG_FIN 0x01
#define TCP_FLAG_SYN 0x02
#define TCP_FLAG_RST 0x04
#define TCP_FLAG_ACK 0x10
#define TCP_FLAG_URG 0x20

#define PROTO_HOP_BY_HOP 0
#define PROTO_ICMP 1
#define PROTO_IGMP 2
#define PROTO_TCP 6
#define PROTO_UDP 17
#define PROTO_ROUTING 43
#define PROTO_FRAGMENT 44
#define PROTO_AUTHENTICATION 51
#define PROTO_ICMPV6 58
#define PROTO_DESTINATION_OPTIONS 60
#define PROTO_MOBILITY 135
#define PROTO_HOST_IDENTITY 139
#define PROTO_SHIM6 140

/* Write an offset to map memory and read it back: any number, to the verifier. The verifier of 6.12 loses the range of an
 * offset whose bits it knows better than its bounds (next header lengths are multiples of eight), and then refuses the
 * next look into the window: "REG INVARIANTS VIOLATION (alu): const tnum out of sync with range bounds". */
#define PACKET_FORGET(p, x)                                \
	do {                                               \
		*(volatile __u32 *)&(p)->payload = (x);    \
		(x) = *(volatile __u32 *)&(p)->payload;    \
	} while (0)

#define WINDOW_AT(w, o) ((w)[(o) & (PACKET_WINDOW - 1)])
#define WINDOW_U16(w, o) (((__u32)WINDOW_AT(w, o) << 8) | WINDOW_AT(w, (o) + 1))

/* Only what cannot leave the link, or data would travel in it to any host without a verdict: neighbour discovery with
 * the hop limit 255 that it is valid with (RFC 4861, types 133-137), multicast membership to a multicast address with
 * the hop limit 1 that all of it has (RFC 2710 and 3810, types 130-132 and 143). */
static inline __attribute__((always_inline)) int packet_is_link_control6(__u8 type, __u8 hops, const struct packet *p)
{
	if (type >= 133 && type <= 137)
		return hops == 255;
	return ((type >= 130 && type <= 132) || type == 143) && hops == 1 && p->tuple.dst[0] == 0xff;
}

static inline __attribute__((always_inline)) int packet_is_extension(__u32 next)
{
	return next == PROTO_HOP_BY_HOP || next == PROTO_ROUTING || next == PROTO_DESTINATION_OPTIONS ||
	       next == PROTO_FRAGMENT || next == PROTO_AUTHENTICATION || next == PROTO_MOBILITY ||
	       next == PROTO_HOST_IDENTITY || next == PROTO_SHIM6;
}

static inline __attribute__((always_inline)) int packet_transport(const __u8 *w, __u32 at, __u32 end, __u32 proto,
								  struct packet *p)
{
	p->tuple.transport = (__u8)proto;
	PACKET_FORGET(p, at);
	if (proto == PROTO_TCP) {
		__u32 header;

		if (at + 20 > end || at + 20 > PACKET_WINDOW)
			return PACKET_MALFORMED;
		header = (__u32)(WINDOW_AT(w, at + 12) >> 4) * 4;
		if (header < 20 || at + header > end)
			return PACKET_MALFORMED;
		p->tuple.sport = WINDOW_U16(w, at);
		p->tuple.dport = WINDOW_U16(w, at + 2);
		p->seq = (WINDOW_U16(w, at + 4) << 16) | WINDOW_U16(w, at + 6);
		p->tcp_flags = WINDOW_AT(w, at + 13);
		p->payload = at + header;
		p->length = end - p->payload;
		return PACKET_OK;
	}
	if (proto == PROTO_UDP) {
		__u32 length;

		if (at + 8 > end || at + 8 > PACKET_WINDOW)
			return PACKET_MALFORMED;
		length = WINDOW_U16(w, at + 4);
		if (length && length < 8)
			return PACKET_MALFORMED;
		if (length && at + length < end)
			end = at + length;
		p->tuple.sport = WINDOW_U16(w, at);
		p->tuple.dport = WINDOW_U16(w, at + 2);
		p->payload = at + 8;
		p->length = end - p->payload;
		return PACKET_OK;
	}
	p->payload = at;
	p->length = end > at ? end - at : 0;
	return PACKET_OK;
}

/* A source route (RFC 791 3.1, options 131 and 137) makes the destination only the next stop. More options than anybody
 * has use for hide what they are: taken for one. */
static inline __attribute__((always_inline)) int packet_is_routed4(const __u8 *w, __u32 at, __u32 end, struct packet *p)
{
	_Pragma("clang loop unroll(disable)") for (int i = 0; i < PACKET_OPTIONS; i++)
	{
		__u32 kind, length = 1;

		PACKET_FORGET(p, at);
		if (at >= end)
			return 0;
		kind = WINDOW_AT(w, at);
		if (kind == 0)
			return 0;
		if (kind != 1) {
			length = at + 1 < end ? WINDOW_AT(w, at + 1) : 0;
			if (kind == 131 || kind == 137 || length < 2)
				return 1;
		}
		at += length;
	}
	return 1;
}

static inline __attribute__((always_inline)) int packet_ipv4(const __u8 *w, __u32 at, __u32 frame, struct packet *p)
{
	__u32 header, total, fragment;

	if (at + 20 > frame || at + 20 > PACKET_WINDOW || WINDOW_AT(w, at) >> 4 != 4)
		return PACKET_MALFORMED;
	header = (__u32)(WINDOW_AT(w, at) & 15) * 4;
	total = WINDOW_U16(w, at + 2);
	/* A segmentation-offload packet over 64 KiB (BIG TCP) carries a total length of 0: the frame's own counts. */
	if (total == 0)
		total = frame - at;
	if (header < 20 || total < header || at + total > frame)
		return PACKET_MALFORMED;
	p->tuple.src[10] = 0xff;
	p->tuple.src[11] = 0xff;
	p->tuple.dst[10] = 0xff;
	p->tuple.dst[11] = 0xff;
#pragma unroll
	for (int i = 0; i < 4; i++) {
		p->tuple.src[12 + i] = WINDOW_AT(w, at + 12 + i);
		p->tuple.dst[12 + i] = WINDOW_AT(w, at + 16 + i);
	}
	p->tuple.transport = WINDOW_AT(w, at + 9);
	fragment = WINDOW_U16(w, at + 6) & 0x1fff;
	if (fragment)
		/* RFC 3128: a second fragment that starts inside the transport header could rewrite the ports that the
		 * first one was judged by. */
		return fragment < 8 ? PACKET_MALFORMED : PACKET_FRAGMENT;
	/* Membership reports go to a group, and no further than this link (RFC 3376 4): else they would be a way out. */
	if (p->tuple.transport == PROTO_IGMP && p->tuple.dst[12] >> 4 == 14 && WINDOW_AT(w, at + 8) == 1)
		return PACKET_LINK_CONTROL;
	if (header > 20 && packet_is_routed4(w, at + 20, at + header, p))
		return PACKET_MALFORMED;
	return packet_transport(w, at + header, at + total, p->tuple.transport, p);
}

static inline __attribute__((always_inline)) int packet_ipv6(const __u8 *w, __u32 at, __u32 frame, struct packet *p)
{
	__u32 next, end;
	__u8 hops;

	if (at + 40 > frame || at + 40 > PACKET_WINDOW || WINDOW_AT(w, at) >> 4 != 6)
		return PACKET_MALFORMED;
	hops = WINDOW_AT(w, at + 7);
	end = WINDOW_U16(w, at + 4);
	end = end ? at + 40 + end : frame; /* 0: jumbogram or BIG TCP */
	if (end > frame)
		return PACKET_MALFORMED;
#pragma unroll
	for (int i = 0; i < 16; i++) {
		p->tuple.src[i] = WINDOW_AT(w, at + 8 + i);
		p->tuple.dst[i] = WINDOW_AT(w, at + 24 + i);
	}
	next = WINDOW_AT(w, at + 6);
	at += 40;
#pragma unroll
	for (int i = 0; i < PACKET_EXTENSIONS; i++) {
		__u32 length;

		if (!packet_is_extension(next))
			break;
		if (at + 8 > end || at + 8 > PACKET_WINDOW)
			return PACKET_MALFORMED;
		/* Segments left: the destination is only the next stop (RFC 8200 4.4). */
		if (next == PROTO_ROUTING && WINDOW_AT(w, at + 3))
			return PACKET_MALFORMED;
		if (next == PROTO_FRAGMENT) {
			__u32 offset = WINDOW_U16(w, at + 2) & 0xfff8;

			p->tuple.transport = WINDOW_AT(w, at);
			if (offset)
				return offset < 64 ? PACKET_MALFORMED : PACKET_FRAGMENT;
			length = 8;
		} else if (next == PROTO_AUTHENTICATION) {
			length = ((__u32)WINDOW_AT(w, at + 1) + 2) * 4;
		} else {
			length = ((__u32)WINDOW_AT(w, at + 1) + 1) * 8;
		}
		next = WINDOW_AT(w, at);
		at += length;
		PACKET_FORGET(p, at);
		if (at > end)
			return PACKET_MALFORMED;
	}
	if (packet_is_extension(next))
		return PACKET_MALFORMED;
	if (next == PROTO_ICMPV6) {
		if (at + 4 > end || at + 4 > PACKET_WINDOW)
			return PACKET_MALFORMED;
		if (packet_is_link_control6(WINDOW_AT(w, at), hops, p))
			return PACKET_LINK_CONTROL;
	}
	return packet_transport(w, at, end, next, p);
}

/* Read the headers in window `w` of a frame of `frame` bytes whose link header is `link` bytes long (14 for Ethernet,
 * 0 for a device without one). `p` is zeroed by the caller. */
static inline __attribute__((always_inline)) int packet_parse(const __u8 *w, __u32 frame, __u32 link, struct packet *p)
{
	__u32 at = link, type;

	if (link) {
		type = WINDOW_U16(w, link - 2);
#pragma unroll
		for (int i = 0; i < 2; i++) {
			if (type != 0x8100 && type != 0x88a8)
				break;
			type = WINDOW_U16(w, at + 2);
			at += 4;
		}
	} else {
		type = WINDOW_AT(w, 0) >> 4 == 4 ? 0x0800 : WINDOW_AT(w, 0) >> 4 == 6 ? 0x86dd : 0;
	}
	if (type == 0x0800)
		return packet_ipv4(w, at, frame, p);
	if (type == 0x86dd)
		return packet_ipv6(w, at, frame, p);
	/* A third tag is no link type that a policy could be asked about. */
	if (type == 0x8100 || type == 0x88a8)
		return PACKET_MALFORMED;
	return PACKET_NOT_IP;
}

#endif
