/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who sends: every frame that comes in by a guarded interface, judged by its source address before the stack sees it.
 *
 *   gate_source          XDP            drop by source address; block a source that scans or floods
 *
 * Precedence: never-deny, a person's word on the source, the policy's (the longest prefix), a block. An allow, a
 * person's or the policy's, also frees the source from the limits. The order below is another, because it is cheaper:
 * never-deny is asked only where something would be dropped or counted against a source.
 */
#include <uapi/linux/bpf.h>

#include "abi.h"
#include "frame.h"
#include "source_abi.h"

/* The maps that gate.c declares; the pin makes them the same ones. */
BPF_F_TABLE("array:" SALLYPORT_PINS "/config", __u32, struct config, config, 1, 0);
BPF_F_TABLE("array:" SALLYPORT_PINS "/generation", __u32, __u32, generation, 1, 0);
BPF_F_TABLE("percpu_array:" SALLYPORT_PINS "/counters", __u32, __u64, counters, COUNTERS, 0);
BPF_F_TABLE("lpm_trie:" SALLYPORT_PINS "/destinations", struct destination_key, struct verdict_entry, destinations,
	    DESTINATIONS_MAX, BPF_F_NO_PREALLOC);

BPF_F_TABLE("lpm_trie:" SALLYPORT_PINS "/source_verdicts", struct source_key, struct verdict_entry, source_verdicts,
	    SOURCES_MAX, BPF_F_NO_PREALLOC);
BPF_F_TABLE("array:" SALLYPORT_PINS "/source_plans", __u32, struct source_plan, source_plans, PLANS, 0);
BPF_F_TABLE("hash:" SALLYPORT_PINS "/source_prefixes", struct prefix_key, struct source_entry, source_prefixes,
	    SOURCES_MAX, BPF_F_NO_PREALLOC);
BPF_F_TABLE("lpm_trie:" SALLYPORT_PINS "/source_trie", struct source_key, struct source_entry, source_trie, SOURCES_MAX,
	    BPF_F_NO_PREALLOC);
BPF_F_TABLE("lru_hash:" SALLYPORT_PINS "/tracked", struct source_address, struct tracked, tracked, TRACKED_MAX, 0);
BPF_F_TABLE("lru_hash:" SALLYPORT_PINS "/blocked", struct source_address, struct blocked, blocked, BLOCKED_MAX, 0);
BPF_F_TABLE("percpu_array:" SALLYPORT_PINS "/tcp_flags", __u32, struct tcp_flag_counts, tcp_flags, 1, 0);
BPF_F_TABLE("percpu_array:" SALLYPORT_PINS "/source_counters", __u32, __u64, source_counters, SOURCE_COUNTERS, 0);
/* A new entry of `tracked` is made from here: 184 bytes of zeros are too many for the stack beside the rest. */
BPF_F_TABLE("array", __u32, struct tracked, untracked, 1, 0);

struct events_table_t {
	int key;
	__u32 leaf;
	int (*ringbuf_output)(void *, u64, u64);
	void *(*ringbuf_reserve)(u64);
	void (*ringbuf_discard)(void *, u64);
	void (*ringbuf_submit)(void *, u64);
	__u32 max_entries;
};
__attribute__((section("maps/ringbuf:" SALLYPORT_PINS "/events"))) struct events_table_t events = {
	.max_entries = EVENT_BYTES,
};

/* What is known about this frame. Map memory and not the stack, because the verifier does not track it: the many ways
 * through the headers merge again behind the parser. Safe: XDP runs with bottom halves off. */
struct source_scratch {
	struct frame frame;
	struct source_address address;
	struct prefix_key exact;
	struct source_key key;
	struct destination_key destination;
	struct blocked block;
	__u32 status;
	__u32 bits;
};
BPF_F_TABLE("percpu_array", __u32, struct source_scratch, source_scratch, 1, 0);

struct run {
	struct xdp_md *ctx;
	struct config *config;
	struct source_plan *plan;
	struct source_scratch *s;
	__u32 observe;
};

enum outcome {
	OUTCOME_PASS = 0,
	OUTCOME_DROP = 1,    /* a verdict */
	OUTCOME_BLOCKED = 2, /* a block */
	OUTCOME_TRACK = 3,
};

static inline __attribute__((always_inline)) void count(__u32 what)
{
	__u64 *n = counters.lookup(&what);

	if (n)
		*n += 1;
}

static inline __attribute__((always_inline)) void count_source(__u32 what)
{
	__u64 *n = source_counters.lookup(&what);

	if (n)
		*n += 1;
}

/* Per CPU and never cleared: nothing is lost between two readings, whoever takes the difference. */
static inline __attribute__((always_inline)) void count_flags(__u8 flags)
{
	__u32 zero = 0;
	struct tcp_flag_counts *counts = tcp_flags.lookup(&zero);

	if (!counts)
		return;
#pragma unroll
	for (int i = 0; i < 8; i++)
		counts->flags[i] += (flags >> i) & 1;
}

/* ---- never-deny ------------------------------------------------------------------------------------------------- */

/* The entries are written for what the host talks to; here the same two ends stand the other way round. A port of an
 * entry is the far service's (a resolver's answer) or ours (an administrator's connection). */
static inline __attribute__((always_inline)) int spared(struct run *r)
{
	struct destination_key *key = &r->s->destination;

	if (!(r->config->present & PRESENT_NEVER_DENY))
		return 0;
	__builtin_memset(key, 0, sizeof(*key));
	key->prefixlen = 32 + 128;
	key->class = DESTINATION_NEVER_DENY;
	__builtin_memcpy(key->address, r->s->frame.address, 16);
	if (destinations.lookup(key))
		return 1;
	key->transport = r->s->frame.transport;
	if (destinations.lookup(key))
		return 1;
	if (r->s->status != FRAME_TRANSPORT)
		return 0;
	key->port = r->s->frame.sport;
	if (destinations.lookup(key))
		return 1;
	key->port = r->s->frame.dport;
	return destinations.lookup(key) != 0;
}

/* ---- verdicts --------------------------------------------------------------------------------------------------- */

static inline __attribute__((always_inline)) void source_key(struct run *r, __u32 number)
{
	r->s->key.prefixlen = 32 + 128;
	r->s->key.generation = number;
	r->s->key.pad = 0;
	__builtin_memcpy(r->s->key.address, r->s->frame.address, 16);
}

/* What a person said about the source: VERDICT_NONE for nothing. */
static inline __attribute__((always_inline)) __u32 word(struct run *r)
{
	struct verdict_entry *entry;

	if (!(r->config->present & PRESENT_SET_SOURCE))
		return VERDICT_NONE;
	source_key(r, 0);
	entry = source_verdicts.lookup(&r->s->key);
	if (!entry || (entry->expires && bpf_ktime_get_ns() >= entry->expires))
		return VERDICT_NONE;
	entry->hits += 1; /* a statistic: two CPUs may lose one, and neither waits */
	return entry->verdict;
}

/* What the policy says of it: the longest prefix. The hash first, length by length from the longest; the trie only if
 * it holds a longer one than what was found (docs/adr/0007-source-prefixes.md). */
static inline __attribute__((always_inline)) __u32 policy(struct run *r)
{
	struct source_scratch *s = r->s;
	struct source_length *lengths = r->plan->lengths + (s->frame.is_ipv6 ? SOURCE_LENGTHS : 0);
	__u32 longest = s->frame.is_ipv6 ? r->plan->longest[SOURCE_IPV6] : r->plan->longest[SOURCE_IPV4];
	__u64 *from = (__u64 *)s->frame.address, *to = (__u64 *)s->exact.address;
	struct source_entry *entry;
	__u32 verdict = VERDICT_NONE;

	s->exact.generation = r->plan->generation;
	s->bits = 0;
#pragma unroll
	for (int i = 0; i < SOURCE_LENGTHS; i++) {
		if (!lengths[i].bits)
			break;
		s->exact.bits = lengths[i].bits;
		to[0] = from[0] & lengths[i].mask[0];
		to[1] = from[1] & lengths[i].mask[1];
		entry = source_prefixes.lookup(&s->exact);
		if (entry) {
			verdict = entry->verdict;
			s->bits = lengths[i].bits + 1;
			break;
		}
	}
	if (longest > s->bits) {
		source_key(r, r->plan->generation);
		entry = source_trie.lookup(&s->key);
		/* An IPv6 prefix shorter than ::ffff:0:0/96 holds every IPv4 address as it is spelled here, and means none. */
		if (entry && (__u32)entry->bits + 1 > s->bits && (s->frame.is_ipv6 || entry->bits >= 96))
			verdict = entry->verdict;
	}
	return verdict;
}

/* ---- limits ----------------------------------------------------------------------------------------------------- */

/* Whom the limits count and block: an IPv4 address, or the /64 of an IPv6 one, within which a sender takes whatever
 * address it likes. Of link-local addresses the whole: they share one /64, the router's among them. */
static inline __attribute__((always_inline)) void who_counts(struct run *r)
{
	__u8 *bytes = r->s->address.bytes;

	__builtin_memcpy(bytes, r->s->frame.address, 16);
	if (r->s->frame.is_ipv6 && !(bytes[0] == 0xfe && (bytes[1] & 0xc0) == 0x80))
		__builtin_memset(bytes + 8, 0, 8);
}

static inline __attribute__((always_inline)) struct blocked *standing_block(struct run *r)
{
	struct blocked *entry = blocked.lookup(&r->s->address);

	if (!entry || bpf_ktime_get_ns() >= entry->expires)
		return 0;
	/* One of a time when nothing was enforced has to be earned again. */
	if (r->s->frame.is_neighbour_discovery || (entry->observed && !r->observe))
		return 0;
	return entry;
}

static inline __attribute__((always_inline)) void block(struct run *r, struct tracked *t, __u8 cause, __u64 now,
							__u64 time)
{
	struct blocked *entry = &r->s->block;
	struct source_event *event;

	__builtin_memset(entry, 0, sizeof(*entry));
	entry->since = now;
	entry->expires = now + time;
	entry->syns = t->syns;
	entry->ports = t->ports;
	entry->unanswered = t->unanswered;
	entry->cause = cause;
	entry->observed = r->observe;
	if (blocked.update(&r->s->address, entry)) {
		count_source(SOURCE_COUNT_LOST_BLOCK);
		return; /* the windows stay as they are: the next SYN tries again */
	}
	/* When the block ends the source begins anew. */
	t->scan_since = 0;
	t->flood_since = 0;
	count_source(SOURCE_COUNT_BLOCKS);
	event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		count(COUNT_LOST_EVENT); /* the engine finds the block when it looks through the table */
		return;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->header.time = now;
	event->header.type = EVENT_SOURCE_BLOCKED;
	__builtin_memcpy(event->address, r->s->address.bytes, 16);
	__builtin_memcpy(&event->blocked, entry, sizeof(*entry));
	event->ifindex = r->ctx->ingress_ifindex;
	event->generation = r->plan->generation;
	events.ringbuf_submit(event, BPF_RB_NO_WAKEUP);
}

/* A segment that begins a connection, or pretends to: without ACK and RST it is a SYN, or what no TCP sends (the FIN,
 * NULL and XMAS scans). A clock of another CPU may be ahead of `now`: differences are signed, or it would look like a
 * window long over. */
static inline __attribute__((always_inline)) void track(struct run *r)
{
	struct source_limits *limits = &r->plan->limits;
	struct tracked *t = tracked.lookup(&r->s->address);
	__u64 now = bpf_ktime_get_ns(), window, time, bit, *bits;
	__u32 zero = 0, place;

	if (!t) {
		t = untracked.lookup(&zero);
		if (!t || tracked.update(&r->s->address, t)) {
			count_source(SOURCE_COUNT_LOST_TRACK);
			return;
		}
		t = tracked.lookup(&r->s->address);
		if (!t)
			return;
		t->salt = bpf_get_prandom_u32();
	}
	if (limits->ports) {
		if (!t->scan_since || (__s64)(now - t->scan_since) >= (__s64)limits->scan_ns) {
			t->scan_since = now;
			t->ports = 0;
			__builtin_memset(t->port_bits, 0, sizeof(t->port_bits));
		}
		/* Multiplicative hashing keeps the runs of neighbouring ports that scanners like apart. */
		place = (((__u32)r->s->frame.dport ^ (t->salt & 0xffff)) * 0x9e3779b1u) >> 22;
		bits = &t->port_bits[(place >> 6) & (SOURCE_PORT_BITS / 64 - 1)];
		bit = 1ULL << (place & 63);
		if (!(*bits & bit)) {
			*bits |= bit;
			t->ports += 1;
		}
	}
	if (r->s->frame.tcp_flags & TCP_FLAG_SYN) {
		window = limits->syns ? limits->flood_ns : limits->scan_ns;
		if (!t->flood_since || (__s64)(now - t->flood_since) >= (__s64)window) {
			t->flood_since = now;
			t->syns = 0;
			t->unanswered = 0;
		}
		t->syns += 1;
		t->unanswered += 1;
	}
	if (limits->syns && t->syns >= limits->syns)
		block(r, t, SOURCE_FLOOD, now, limits->flood_block_ns);
	else if (limits->ports && t->ports >= limits->ports)
		block(r, t, SOURCE_SCAN, now, limits->scan_block_ns);
}

/* ---- XDP -------------------------------------------------------------------------------------------------------- */

static inline __attribute__((always_inline)) int judge(struct run *r)
{
	struct source_scratch *s = r->s;
	__u32 zero = 0, *number, slot, verdict;
	struct tracked *t;

	verdict = word(r);
	if (verdict == VERDICT_NONE) {
		if (!(r->config->present & PRESENT_SOURCE))
			return OUTCOME_PASS;
		number = generation.lookup(&zero);
		if (!number)
			return OUTCOME_PASS;
		slot = *number & (PLANS - 1);
		r->plan = source_plans.lookup(&slot);
		if (!r->plan || r->plan->generation != *number)
			return OUTCOME_PASS;
		verdict = policy(r);
	}
	if (verdict != VERDICT_NONE)
		return verdict == VERDICT_DENY || verdict == VERDICT_REJECT ? OUTCOME_DROP : OUTCOME_PASS;
	if (!r->plan || !(r->plan->limits.ports | r->plan->limits.syns))
		return OUTCOME_PASS;

	who_counts(r);
	if (standing_block(r))
		return OUTCOME_BLOCKED;
	if (s->status != FRAME_TRANSPORT || s->frame.transport != PROTO_TCP)
		return OUTCOME_PASS;
	if (!(s->frame.tcp_flags & (TCP_FLAG_ACK | TCP_FLAG_RST)))
		return OUTCOME_TRACK;
	if (s->frame.tcp_flags & TCP_FLAG_ACK) {
		/* One of its SYNs was meant, or so it seems. */
		t = tracked.lookup(&s->address);
		if (t && t->unanswered)
			t->unanswered -= 1;
	}
	return OUTCOME_PASS;
}

static inline __attribute__((always_inline)) int drop(struct run *r, int outcome)
{
	struct blocked *entry;

	if (outcome == OUTCOME_DROP) {
		count(r->observe ? COUNT_WOULD_DROP : COUNT_DROPPED_SOURCE);
	} else {
		count_source(r->observe ? SOURCE_COUNT_WOULD_BLOCK : SOURCE_COUNT_DROPPED_BLOCKED);
		entry = blocked.lookup(&r->s->address);
		if (entry)
			__sync_fetch_and_add(&entry->dropped, 1);
	}
	return r->observe ? XDP_PASS : XDP_DROP;
}

int gate_source(struct xdp_md *ctx)
{
	struct run r = {.ctx = ctx};
	struct source_scratch *s;
	__u32 zero = 0;
	int outcome;

	r.config = config.lookup(&zero);
	if (!r.config || r.config->mode == MODE_PANIC)
		return XDP_PASS;
	r.observe = r.config->mode == MODE_OBSERVE;
	s = r.s = source_scratch.lookup(&zero);
	if (!s)
		return XDP_PASS;
	__builtin_memset(&s->frame, 0, sizeof(s->frame));
	s->status = frame_parse((void *)(long)ctx->data, (void *)(long)ctx->data_end, ctx->data_end - ctx->data, &s->frame);
	/* Read again from the map: the ways that led here are one from now on. */
	asm volatile("" ::: "memory");
	if (s->status == FRAME_NOT_IP)
		return XDP_PASS;
	count_source(SOURCE_COUNT_FRAMES);
	if (s->status == FRAME_UNREADABLE || s->status == FRAME_NO_SOURCE)
		count_source(SOURCE_COUNT_UNREADABLE);
	if (s->status == FRAME_NO_SOURCE)
		return XDP_PASS; /* the stack drops it */
	if (s->status == FRAME_TRANSPORT && s->frame.transport == PROTO_TCP)
		count_flags(s->frame.tcp_flags);
	outcome = judge(&r);
	if (outcome == OUTCOME_PASS)
		return XDP_PASS;
	if (spared(&r)) {
		count_source(SOURCE_COUNT_SPARED);
		return XDP_PASS;
	}
	if (outcome != OUTCOME_TRACK)
		return drop(&r, outcome);
	track(&r);
	return XDP_PASS;
}
