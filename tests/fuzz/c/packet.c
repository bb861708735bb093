/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Fuzzes bpf/include/packet.h against a second reading of the same frame, written from the RFCs over a cursor instead of
 * a masked window.
 *
 * Input: u8 link (bit 0: Ethernet, else no link header), u8 how many KiB the frame is longer than its bytes here (a
 * super-packet, whose rest nobody reads), the frame.
 */
#include "fuzz.h"
#include "packet.h"

struct second {
	__u8 src[16], dst[16];
	__u32 transport, sport, dport, payload, end, seq, flags;
	int status;
	int headers; /* bytes of headers that were read: what lies beyond the window the kernel may refuse */
};

struct cursor {
	const __u8 *frame;
	__u32 present; /* bytes that are there; the rest up to `length` is zero */
	__u32 length;
	__u32 at;
};

static __u32 byte_at(const struct cursor *c, __u32 o)
{
	return o < c->present ? c->frame[o] : 0;
}

static __u32 pair_at(const struct cursor *c, __u32 o)
{
	return byte_at(c, o) << 8 | byte_at(c, o + 1);
}

/* RFC 9293 section 3.1, RFC 768. */
static int second_transport(const struct cursor *c, __u32 end, struct second *s)
{
	__u32 at = c->at;

	s->payload = at;
	s->end = end > at ? end : at;
	if (s->transport == 6) {
		__u32 words = byte_at(c, at + 12) >> 4;

		s->headers = at + 20;
		if (at + 20 > end || words < 5 || at + words * 4 > end)
			return PACKET_MALFORMED;
		s->seq = pair_at(c, at + 4) << 16 | pair_at(c, at + 6);
		s->flags = byte_at(c, at + 13);
		s->payload = at + words * 4;
	} else if (s->transport == 17) {
		__u32 length = pair_at(c, at + 4);

		s->headers = at + 8;
		if (at + 8 > end || (length > 0 && length < 8))
			return PACKET_MALFORMED;
		s->payload = at + 8;
		if (length > 0 && at + length < end)
			s->end = at + length;
	} else {
		return PACKET_OK;
	}
	s->sport = pair_at(c, at);
	s->dport = pair_at(c, at + 2);
	return PACKET_OK;
}

/* A source route, or as many options as PACKET_OPTIONS (RFC 791 section 3.1). */
static int second_is_routed(const struct cursor *c, __u32 at, __u32 end)
{
	for (int n = 0; n < PACKET_OPTIONS; n++) {
		__u32 kind = byte_at(c, at), length = at + 1 < end ? byte_at(c, at + 1) : 0;

		if (at >= end || kind == 0)
			return 0;
		if (kind == 131 || kind == 137 || (kind != 1 && length < 2))
			return 1;
		at += kind == 1 ? 1 : length;
	}
	return 1;
}

/* RFC 791. */
static int second_ipv4(struct cursor *c, struct second *s)
{
	__u32 at = c->at, words, total, offset;

	s->headers = at + 20;
	if (c->length < at + 20 || byte_at(c, at) >> 4 != 4)
		return PACKET_MALFORMED;
	words = byte_at(c, at) & 15;
	total = pair_at(c, at + 2) ? pair_at(c, at + 2) : c->length - at;
	if (words < 5 || words * 4 > total || total > c->length - at)
		return PACKET_MALFORMED;
	memset(s->src + 10, 0xff, 2);
	memset(s->dst + 10, 0xff, 2);
	for (int i = 0; i < 4; i++) {
		s->src[12 + i] = byte_at(c, at + 12 + i);
		s->dst[12 + i] = byte_at(c, at + 16 + i);
	}
	s->transport = byte_at(c, at + 9);
	offset = (pair_at(c, at + 6) % 8192) * 8;
	if (offset)
		return offset < 64 ? PACKET_MALFORMED : PACKET_FRAGMENT;
	if (s->transport == 2 && s->dst[12] >= 224 && s->dst[12] < 240 && byte_at(c, at + 8) == 1)
		return PACKET_LINK_CONTROL;
	if (words > 5 && second_is_routed(c, at + 20, at + words * 4))
		return PACKET_MALFORMED;
	c->at = at + words * 4;
	return second_transport(c, at + total, s);
}

static int is_extension(__u32 kind)
{
	static const __u8 kinds[] = {0, 43, 44, 51, 60, 135, 139, 140};

	return kind < 256 && memchr(kinds, (int)kind, sizeof(kinds)) != NULL;
}

/* RFC 8200 section 4. */
static int second_ipv6(struct cursor *c, struct second *s)
{
	__u32 at = c->at, end, kind, type, hops;

	s->headers = at + 40;
	if (c->length < at + 40 || byte_at(c, at) >> 4 != 6)
		return PACKET_MALFORMED;
	end = pair_at(c, at + 4) ? at + 40 + pair_at(c, at + 4) : c->length;
	if (end > c->length)
		return PACKET_MALFORMED;
	for (int i = 0; i < 16; i++) {
		s->src[i] = byte_at(c, at + 8 + i);
		s->dst[i] = byte_at(c, at + 24 + i);
	}
	kind = byte_at(c, at + 6);
	hops = byte_at(c, at + 7);
	c->at = at + 40;
	for (int n = 0; is_extension(kind); n++) {
		__u32 length;

		s->headers = c->at + 8;
		if (n == PACKET_EXTENSIONS || c->at + 8 > end)
			return PACKET_MALFORMED;
		if (kind == 43 && byte_at(c, c->at + 3))
			return PACKET_MALFORMED;
		if (kind == 44) {
			__u32 offset = pair_at(c, c->at + 2) & ~7u;

			if (offset) {
				s->transport = byte_at(c, c->at);
				return offset < 64 ? PACKET_MALFORMED : PACKET_FRAGMENT;
			}
			length = 8;
		} else {
			length = kind == 51 ? byte_at(c, c->at + 1) * 4 + 8 : byte_at(c, c->at + 1) * 8 + 8;
		}
		kind = byte_at(c, c->at);
		c->at += length;
		if (c->at > end)
			return PACKET_MALFORMED;
	}
	s->transport = kind;
	if (kind == 58) {
		s->headers = c->at + 4;
		if (c->at + 4 > end)
			return PACKET_MALFORMED;
		type = byte_at(c, c->at);
		if (type >= 133 && type <= 137 && hops == 255)
			return PACKET_LINK_CONTROL;
		if (((type >= 130 && type <= 132) || type == 143) && hops == 1 && s->dst[0] == 255)
			return PACKET_LINK_CONTROL;
	}
	return second_transport(c, end, s);
}

static void second_reading(const __u8 *frame, __u32 present, __u32 length, __u32 link, struct second *s)
{
	struct cursor c = {.frame = frame, .present = present, .length = length, .at = link};
	__u32 type;

	memset(s, 0, sizeof(*s));
	if (link) {
		type = pair_at(&c, 12);
		for (int tags = 0; type == 0x8100 || type == 0x88a8; tags++) {
			if (tags == 2) {
				s->status = PACKET_MALFORMED;
				return;
			}
			type = pair_at(&c, c.at + 2);
			c.at += 4;
		}
	} else {
		__u32 version = byte_at(&c, 0) >> 4;

		type = version == 4 ? 0x0800 : version == 6 ? 0x86dd : 0;
	}
	s->status = type == 0x0800 ? second_ipv4(&c, s) : type == 0x86dd ? second_ipv6(&c, s) : PACKET_NOT_IP;
}

/* As gate.c does it: a window of the first bytes, zero behind them. On the heap, where a read past its end is seen. */
static int kernel(const __u8 *frame, __u32 present, __u32 length, __u32 link, struct packet *p)
{
	__u8 *window = calloc(1, PACKET_WINDOW);
	int status;

	memcpy(window, frame, present < PACKET_WINDOW ? present : PACKET_WINDOW);
	memset(p, 0, sizeof(*p));
	status = packet_parse(window, length, link, p);
	free(window);
	return status;
}

int LLVMFuzzerTestOneInput(const __u8 *data, size_t size)
{
	struct packet p, other;
	struct second s;
	__u32 link, present, length;
	__u8 *copy;
	int status;

	if (size < 2 + 14)
		return 0;
	link = data[0] & 1 ? 14 : 0;
	present = (__u32)size - 2;
	length = present + data[1] * 1024u;
	/* A frame as long as its bytes ends where they end; a longer one goes on in zeros. */
	copy = malloc(present);
	memcpy(copy, data + 2, present);

	status = kernel(copy, present, length, link, &p);
	second_reading(copy, present, length, link, &s);
	if (status != s.status)
		/* Stricter only where the headers lie beyond what the kernel copies. */
		HOLDS(status == PACKET_MALFORMED && s.headers > PACKET_WINDOW);
	HOLDS(!p.pad[0] && !p.pad[1] && !p.pad[2] && !p.tuple.pad[0] && !p.tuple.pad[1] && !p.tuple.pad[2]);
	if (status == PACKET_OK) {
		HOLDS(p.payload <= length && p.length <= length - p.payload);
		HOLDS(!memcmp(p.tuple.src, s.src, 16) && !memcmp(p.tuple.dst, s.dst, 16));
		HOLDS(p.tuple.transport == s.transport && p.tuple.sport == s.sport && p.tuple.dport == s.dport);
		HOLDS(p.payload == s.payload && p.payload + p.length == s.end);
		HOLDS(p.seq == s.seq && p.tcp_flags == s.flags);
		/* What a packet carries says nothing about whose it is. */
		if (p.payload < present && p.tuple.transport != PROTO_ICMPV6) {
			memset(copy + p.payload, ~copy[p.payload], present - p.payload);
			HOLDS(kernel(copy, present, length, link, &other) == PACKET_OK && !memcmp(&p, &other, sizeof(p)));
			memcpy(copy, data + 2, present);
		}
		/* A frame that was cut is refused, or it is the same flow's. */
		if (kernel(copy, present < length ? present : length - 1, length - 1, link, &other) == PACKET_OK)
			HOLDS(!memcmp(&p.tuple, &other.tuple, sizeof(p.tuple)) && other.length <= p.length);
	}
	free(copy);
	return 0;
}
