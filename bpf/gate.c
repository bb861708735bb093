/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The gate: every packet that leaves by a guarded interface meets a standing verdict here, or is held.
 *
 *   gate_egress          TC egress      pass, drop, or redirect to the hold device
 *   gate_connect4/6      cgroup         who opens the socket; EPERM where a standing deny covers the destination
 *   gate_sendmsg4/6      cgroup         the same for datagrams of unconnected sockets
 *   gate_discard         TC ingress     end of the hold device: its frames are for the engine, never for the stack
 *
 * Precedence at egress: never-deny, a person's word on the destination, the flow's own verdict, strategy, destination
 * verdict, a person's word on the name, name verdict, hold. Socket storage comes first of all: a decided TCP flow costs
 * one look-up and no parsing. README.md in this folder has the table of programs and maps.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>

#include "abi.h"
#include "packet.h"
#include "tls_hello.h"

#define MAP(type, key, leaf, name, n, flags) \
	BPF_F_TABLE(type ":" SALLYPORT_PINS "/" #name, struct key, struct leaf, name, n, flags)
#define ARRAY(type, leaf, name, n) BPF_F_TABLE(type ":" SALLYPORT_PINS "/" #name, __u32, leaf, name, n, 0)

/* Names in per-CPU scratch end at byte NAME_END, whatever their length, so the reversal reads at fixed offsets. */
#define NAME_END 256
#define NAME_WORDS (NAME_KEY_BYTES / 8)

struct scratch {
	/* What is known about this run. Here and not on the stack because map memory is not tracked by the verifier:
	 * branches that differ only in these merge again. */
	__u32 generation;
	__u32 observe;
	__u32 origin;
	__u32 stage;
	__u32 why;	 /* counter of a hold or a drop */
	__u32 condition; /* of the posture */
	__u32 undecided;
	__u32 tcp;
	__u32 quic; /* the datagram begins a QUIC connection */
	__u32 is_allowed;
	__u32 is_known;
	__u32 pad;
	struct verdict_entry entry;   /* to apply: a copy, so that every way to apply() looks alike to the verifier */
	struct verdict_entry known;   /* the flow's own */
	struct verdict_entry allowed; /* the destination's standing allow, while the name is still to be read */
	__u8 window[PACKET_WINDOW];
	struct packet packet;
	struct flow_key flow;
	struct connect_key connect;
	struct destination_key destination;
	struct held held;
	struct name_key name_key;
	__u8 name_key_slack[64];
	__u8 name[NAME_END + 512];
	struct hello hello;
};

ARRAY("array", struct config, config, 1);
ARRAY("array", __u32, generation, 1);
ARRAY("array", struct plan, plans, PLANS);
ARRAY("array", __u64, heartbeat, 1);
ARRAY("array", __u64, hold_queue, 2); /* 0: frames redirected, 1: frames the engine has taken */
ARRAY("percpu_array", __u64, counters, COUNTERS);
BPF_F_TABLE("percpu_array", __u32, struct scratch, scratch, 1, 0);
BPF_F_TABLE("hash:" SALLYPORT_PINS "/interfaces", __u32, __u32, interfaces, INTERFACES_MAX, 0);
BPF_F_TABLE("lru_hash:" SALLYPORT_PINS "/processes", __u32, struct process, processes, PROCESSES_MAX, 0);
BPF_F_TABLE("sk_storage:" SALLYPORT_PINS "/sockets", int, struct socket_state, sockets, 0, BPF_F_NO_PREALLOC);
MAP("lpm_trie", destination_key, verdict_entry, destinations, DESTINATIONS_MAX, BPF_F_NO_PREALLOC);
MAP("lpm_trie", name_key, verdict_entry, name_verdicts, NAME_VERDICTS_MAX, BPF_F_NO_PREALLOC);
MAP("hash", strategy_key, verdict_entry, strategies, STRATEGIES_MAX, BPF_F_NO_PREALLOC);
MAP("hash", connect_key, verdict_entry, connect_verdicts, CONNECT_VERDICTS_MAX, BPF_F_NO_PREALLOC);
BPF_F_TABLE("hash:" SALLYPORT_PINS "/classes", struct connect_key, __u32, classes, CLASSES_MAX, BPF_F_NO_PREALLOC);
MAP("lru_hash", flow_key, verdict_entry, flow_verdicts, FLOW_VERDICTS_MAX, 0);
MAP("lru_hash", tuple, held, held, HELD_MAX, 0);

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

/* clang 14 without 32-bit ALU compares a zero-extended copy and the verifier learns nothing about the value itself:
 * sizes and offsets are 64-bit, and their bound is fixed by a barrier before the mask. */
#define BARRIER(v) asm volatile("" : "+r"(v))

/* BCC declares this helper as returning 32 bits, which cuts the cookie. */
#define SOCKET_COOKIE(context) (((__u64(*)(void *))BPF_FUNC_get_socket_cookie)(context))

static inline __attribute__((always_inline)) void count(__u32 what)
{
	__u64 *n = counters.lookup(&what);

	if (n)
		*n += 1;
}

static inline __attribute__((always_inline)) int standing(struct verdict_entry *entry)
{
	if (!entry)
		return 0;
	if (entry->expires && bpf_ktime_get_ns() >= entry->expires)
		return 0;
	entry->hits += 1; /* a statistic: two CPUs may lose one, and neither waits */
	return 1;
}

/* ---- look-ups that the packet path and the connect hooks share -------------------------------------------------- */

/* Find a person's word about a destination: exact port first, then any port, then any transport. */
static inline __attribute__((always_inline)) struct verdict_entry *
destination(struct destination_key *key, __u8 class, __u8 transport, __u16 port, const __u8 *address)
{
	struct verdict_entry *entry;

	key->prefixlen = 32 + 128;
	key->class = class;
	key->transport = transport;
	key->port = port;
	__builtin_memcpy(key->address, address, 16);
	entry = destinations.lookup(key);
	if (standing(entry))
		return entry;
	key->port = 0;
	entry = destinations.lookup(key);
	if (standing(entry))
		return entry;
	key->transport = 0;
	entry = destinations.lookup(key);
	return standing(entry) ? entry : 0;
}

static inline __attribute__((always_inline)) struct verdict_entry *strategy_of(__u32 kind, __u64 value)
{
	struct strategy_key key = {.kind = kind, .value = value};
	struct verdict_entry *entry = strategies.lookup(&key);

	return standing(entry) ? entry : 0;
}

/* Strategy by executable, control group, user, then by destination: the first that says anything. */
static inline __attribute__((always_inline)) struct verdict_entry *
strategy(__u32 present, const struct identity *who, struct destination_key *key, __u8 transport, __u16 port,
	 const __u8 *address)
{
	struct verdict_entry *entry = 0;

	if ((present & PRESENT_STRATEGY_ID) && who) {
		if (who->exe)
			entry = strategy_of(STRATEGY_EXE, who->exe);
		if (!entry)
			entry = strategy_of(STRATEGY_CGROUP, who->cgroup);
		if (!entry)
			entry = strategy_of(STRATEGY_USER, who->uid);
	}
	if (!entry && (present & PRESENT_STRATEGY_DEST))
		entry = destination(key, DESTINATION_STRATEGY, transport, port, address);
	return entry;
}

/* Fill in the facts of a shape and leave the rest zero. 0 when a fact of the shape is not known: unknown is a value
 * that the engine is asked about, never a key. */
static inline __attribute__((always_inline)) int facts(struct connect_key *key, __u32 generation, __u8 shape,
						       const struct identity *who, __u8 transport, __u16 port,
						       const __u8 *address)
{
	if (shape & ~SHAPE_DEST) {
		if (!who || ((shape & SHAPE_EXE) && !who->exe))
			return 0;
	}
	__builtin_memset(key, 0, sizeof(*key));
	key->generation = generation;
	key->shape = shape;
	if (shape & SHAPE_DEST) {
		key->transport = transport;
		key->port = port;
		__builtin_memcpy(key->address, address, 16);
	}
	if (who) {
		if (shape & SHAPE_CGROUP)
			key->cgroup = who->cgroup;
		if (shape & SHAPE_EXE)
			key->exe = who->exe;
		if (shape & SHAPE_USER)
			key->uid = who->uid;
	}
	return 1;
}

static inline __attribute__((always_inline)) struct verdict_entry *
connect_verdict(const struct plan *plan, struct connect_key *key, const struct identity *who, __u8 transport,
		__u16 port, const __u8 *address)
{
	_Pragma("clang loop unroll(disable)") for (int i = 0; i < SHAPES_MAX; i++)
	{
		struct verdict_entry *entry;

		if (i >= plan->connect_shapes_n)
			break;
		if (!facts(key, plan->generation, plan->connect_shapes[i], who, transport, port, address))
			continue;
		entry = connect_verdicts.lookup(key);
		if (standing(entry))
			return entry;
	}
	return 0;
}

/* The plan of the generation in force, or none while the two do not agree (then the engine is asked). */
static inline __attribute__((always_inline)) struct plan *plan_of(__u32 number)
{
	__u32 slot = number & (PLANS - 1);
	struct plan *plan = plans.lookup(&slot);

	return plan && plan->generation == number ? plan : 0;
}

/* ---- TC egress -------------------------------------------------------------------------------------------------- */

/* What judge() found out. apply() and hold() are then inlined once: each of them once for every way to reach them made
 * a program of 5,000 instructions. */
enum outcome {
	OUTCOME_PASS = 0,
	OUTCOME_DROP = 1,
	OUTCOME_APPLY = 2,
	OUTCOME_HOLD = 3,
	OUTCOME_POSTURE = 4,
};

struct run {
	struct __sk_buff *skb;
	struct config *config;
	struct scratch *s;
	struct socket_state *state;
};

static inline __attribute__((always_inline)) void fill_event(struct verdict_event *event, struct run *r,
							     struct verdict_entry *entry, __u8 origin, __u8 stage)
{
	__builtin_memset(event, 0, sizeof(*event));
	event->header.time = bpf_ktime_get_ns();
	event->header.type = EVENT_VERDICT;
	if (r->state) {
		__builtin_memcpy(&event->identity, &r->state->identity, sizeof(event->identity));
		event->flags = r->state->flags;
	} else {
		event->flags = FLOW_NO_STORAGE;
	}
	if (r->s->observe)
		event->flags |= FLOW_OBSERVE;
	__builtin_memcpy(&event->tuple, &r->s->packet.tuple, sizeof(event->tuple));
	event->ifindex = r->skb->ifindex;
	event->cookie = r->s->flow.cookie;
	event->generation = r->s->generation;
	event->verdict_id = entry->id;
	event->verdict = entry->verdict;
	event->origin = origin;
	event->stage = stage;
	event->part = r->s->flow.part;
}

/* A standing verdict meets a flow: remember it for the flow, tell the engine once, pass or drop. */
static inline __attribute__((always_inline)) int apply(struct run *r)
{
	struct verdict_entry *entry = &r->s->entry;
	__u32 origin = r->s->origin, stage = r->s->stage;
	struct scratch *s = r->s;
	struct socket_state *state = r->state;
	int passes = entry->verdict == VERDICT_ALLOW || entry->verdict == VERDICT_IGNORE;

	if (state && s->packet.tuple.transport == PROTO_TCP) {
		state->verdict = entry->verdict;
		state->verdict_id = entry->id;
		state->generation = r->s->generation;
		state->expires = entry->expires;
		state->origin = origin;
		state->flags &= ~FLOW_HOLDING;
		if (passes || r->s->observe)
			state->flags |= FLOW_PAYLOAD_PASSED;
	} else if (origin != ORIGIN_FLOW) {
		struct verdict_entry copy = {
			.expires = entry->expires, .id = entry->id, .verdict = entry->verdict, .by_name = entry->by_name};

		/* Without it the next packet is looked up and told again: no harm but the telling. */
		if (flow_verdicts.update(&s->flow, &copy))
			count(COUNT_LOST_FLOW_VERDICT);
	}
	if (origin != ORIGIN_FLOW) {
		if (origin == ORIGIN_NAME || (origin == ORIGIN_SET && stage == STAGE_PAYLOAD)) {
			struct verdict_name_event *event = events.ringbuf_reserve(sizeof(struct verdict_name_event));

			if (event) {
				fill_event(&event->verdict, r, entry, origin, stage);
				event->verdict.header.type = EVENT_VERDICT_NAME;
				event->name_length = s->hello.name_length;
				event->pad = 0;
				__builtin_memcpy(event->name, s->name_key.name, NAME_KEY_BYTES);
				events.ringbuf_submit(event, passes ? BPF_RB_NO_WAKEUP : BPF_RB_FORCE_WAKEUP);
			} else {
				count(COUNT_LOST_EVENT);
			}
		} else {
			struct verdict_event *event = events.ringbuf_reserve(sizeof(struct verdict_event));

			if (event) {
				fill_event(event, r, entry, origin, stage);
				events.ringbuf_submit(event, passes ? BPF_RB_NO_WAKEUP : BPF_RB_FORCE_WAKEUP);
			} else {
				count(COUNT_LOST_EVENT);
			}
		}
	}
	count(entry->verdict == VERDICT_IGNORE ? COUNT_PASSED_IGNORED
	      : origin == ORIGIN_FLOW	       ? COUNT_HIT_FLOW
	      : origin == ORIGIN_DEST	       ? COUNT_HIT_DEST
	      : origin == ORIGIN_NAME	       ? COUNT_HIT_NAME
					       : COUNT_HIT_SET);
	if (passes)
		return TC_ACT_UNSPEC;
	if (r->s->observe) {
		count(COUNT_WOULD_DROP);
		return TC_ACT_UNSPEC;
	}
	count(origin == ORIGIN_FLOW   ? COUNT_DROPPED_FLOW
	      : origin == ORIGIN_DEST ? COUNT_DROPPED_DEST
	      : origin == ORIGIN_NAME ? COUNT_DROPPED_NAME
				      : COUNT_DROPPED_SET);
	return TC_ACT_SHOT;
}

/* What passes without having been read may have been the start of the stream: from now on no payload of this flow may
 * be taken for it, or a hello in the middle would be believed. */
static inline __attribute__((always_inline)) void passed_unread(struct run *r)
{
	if (r->state && r->s->packet.length)
		r->state->flags |= FLOW_PAYLOAD_PASSED;
}

static inline __attribute__((always_inline)) int posture(struct run *r)
{
	if (r->s->observe || (r->config->open & r->s->condition)) {
		passed_unread(r);
		count(COUNT_PASSED_POSTURE);
		return TC_ACT_UNSPEC;
	}
	count(r->s->why);
	return TC_ACT_SHOT;
}

static inline __attribute__((always_inline)) int to_apply(struct run *r, struct verdict_entry *entry, __u32 origin,
							  __u32 stage)
{
	__builtin_memcpy(&r->s->entry, entry, sizeof(*entry));
	r->s->origin = origin;
	r->s->stage = stage;
	return OUTCOME_APPLY;
}

static inline __attribute__((always_inline)) int to_hold(struct run *r, __u32 stage, __u32 why)
{
	r->s->stage = stage;
	r->s->why = why;
	return OUTCOME_HOLD;
}

static inline __attribute__((always_inline)) int to_posture(struct run *r, __u32 condition, __u32 why)
{
	r->s->condition = condition;
	r->s->why = why;
	return OUTCOME_POSTURE;
}

/* No verdict stands: this very packet goes to the engine, which releases or discards it. While observing, a copy. */
static inline __attribute__((always_inline)) int hold(struct run *r)
{
	struct scratch *s = r->s;
	struct held *held_by = &s->held;
	__u32 at = 0;
	__u64 *taken, *redirected, *beat, now = bpf_ktime_get_ns();

	beat = heartbeat.lookup(&at);
	/* A beat of the future is a beat: it was written on another CPU a moment after `now` was read here. */
	if (!beat || (now > *beat && now - *beat > r->config->heartbeat_max))
		return to_posture(r, POSTURE_ENGINE_ABSENT, COUNT_DROPPED_ENGINE_ABSENT);
	redirected = hold_queue.lookup(&at);
	at = 1;
	taken = hold_queue.lookup(&at);
	if (!redirected || !taken || (__s64)(*redirected - *taken) >= r->config->hold_limit)
		return to_posture(r, POSTURE_HOLD_FULL, COUNT_DROPPED_HOLD_FULL);

	__builtin_memset(held_by, 0, sizeof(*held_by));
	held_by->cookie = s->flow.cookie;
	held_by->time = now;
	held_by->ifindex = r->skb->ifindex;
	held_by->generation = r->s->generation;
	held_by->part = s->flow.part;
	held_by->stage = r->s->stage;
	if (r->state) {
		__builtin_memcpy(&held_by->identity, &r->state->identity, sizeof(held_by->identity));
		held_by->verdict_id = r->state->verdict_id;
		held_by->flags = r->state->flags;
		held_by->start = r->state->start;
		if (s->packet.length)
			r->state->flags |= s->observe ? FLOW_HOLDING | FLOW_COPIED : FLOW_HOLDING;
	} else {
		held_by->flags = FLOW_NO_STORAGE;
	}
	if (r->s->observe)
		held_by->flags |= FLOW_CLONED | FLOW_OBSERVE;
	if (held.update(&s->packet.tuple, held_by))
		return to_posture(r, POSTURE_MAP_FULL, COUNT_DROPPED_MAP_FULL);
	__sync_fetch_and_add(redirected, 1);
	count(r->s->why);
	if (r->s->observe) {
		bpf_clone_redirect(r->skb, r->config->hold_ifindex, 0);
		return OUTCOME_PASS;
	}
	return OUTCOME_HOLD;
}

/* 0x80 in every byte of x that is an ASCII capital, shifted to the bit that tells the cases apart. */
static inline __attribute__((always_inline)) __u64 lower8(__u64 x)
{
	__u64 h = x & 0x7f7f7f7f7f7f7f7fULL;

	return x | (((~x & 0x8080808080808080ULL) & ((h + 0x2525252525252525ULL) ^ (h + 0x3f3f3f3f3f3f3f3fULL))) >> 2);
}

/* Build the trie key of the name that hello_name() found: lower case, last byte first, NUL at its end. */
static inline __attribute__((always_inline)) int name_key(struct scratch *s)
{
	__u64 length = s->hello.name_length, offset = s->hello.name_offset, last;

	last = length - 1;
	if (last >= NAME_MAX_KERNEL)
		return 0;
	BARRIER(last);
	last &= 255;
	offset &= HELLO_MASK;
	/* The name ends at a fixed place, so that the loop below needs no variable index: a moving pointer is not
	 * provable on 5.10 and 6.1. */
	if (bpf_probe_read_kernel(s->name + ((NAME_END - 1 - last) & 255), last + 1, s->hello.bytes + offset))
		return 0;
	_Pragma("clang loop unroll(disable)") for (int i = 0; i < NAME_WORDS; i++)
	{
		*(__u64 *)(s->name_key.name + i * 8) =
			__builtin_bswap64(lower8(*(__u64 *)(s->name + NAME_END - 8 - i * 8)));
		if (length <= (__u64)(i + 1) * 8)
			break;
	}
	s->name_key.name[length & 255] = 0; /* what lies behind the terminator is beyond prefixlen */
	s->name_key.prefixlen = 32 + (length + 1) * 8;
	return 1;
}

static inline __attribute__((always_inline)) struct verdict_entry *named(struct scratch *s, __u32 class)
{
	struct verdict_entry *entry;

	s->name_key.class = class;
	entry = name_verdicts.lookup(&s->name_key);
	return standing(entry) ? entry : 0;
}

/* The first payload of a TCP flow: a whole ClientHello whose name has a verdict is decided here. */
static inline __attribute__((always_inline)) int first_payload(struct run *r, struct plan *plan,
							       const struct identity *who)
{
	struct scratch *s = r->s;
	struct verdict_entry *entry;
	__u64 last = (__u64)s->packet.length - 1;

	if (last > HELLO_MASK)
		last = HELLO_MASK;
	BARRIER(last);
	last &= HELLO_MASK;
	if (bpf_skb_load_bytes(r->skb, s->packet.payload, s->hello.bytes, last + 1))
		return to_hold(r, STAGE_PAYLOAD, COUNT_HELD_PAYLOAD);
	if (hello_name(&s->hello, last + 1) != HELLO_NAMED || !name_key(s))
		return to_hold(r, STAGE_PAYLOAD, COUNT_HELD_PAYLOAD);
	if (r->config->present & PRESENT_SET_NAME) {
		entry = named(s, NAME_CLASS_SET);
		if (entry)
			return to_apply(r, entry, ORIGIN_SET, STAGE_PAYLOAD);
	}
	if (s->is_allowed)
		return to_apply(r, &s->allowed, ORIGIN_DEST, STAGE_CONNECT);
	_Pragma("clang loop unroll(disable)") for (int i = 0; i < SHAPES_MAX; i++)
	{
		__u32 *class;

		if (i >= plan->name_shapes_n)
			break;
		if (!facts(&s->connect, plan->generation, plan->name_shapes[i], who, s->packet.tuple.transport,
			   s->packet.tuple.dport, s->packet.tuple.dst))
			continue;
		class = classes.lookup(&s->connect);
		if (!class)
			continue;
		entry = named(s, *class);
		if (entry)
			return to_apply(r, entry, ORIGIN_NAME, STAGE_PAYLOAD);
	}
	return to_hold(r, STAGE_PAYLOAD, COUNT_HELD_PAYLOAD);
}

/* QUIC long header of type Initial, version 1 (RFC 9000 17.2.2) or 2 (RFC 9369 3.2): a new connection may begin on a
 * flow that has a verdict by name already. */
static inline __attribute__((always_inline)) int quic_initial(struct run *r)
{
	__u8 b[5] = {};

	if (r->s->packet.length < 1200 || bpf_skb_load_bytes(r->skb, r->s->packet.payload, b, 5))
		return 0;
	if ((b[0] & 0xf0) == 0xc0 && !b[1] && !b[2] && !b[3] && b[4] == 1)
		return 1;
	return (b[0] & 0xf0) == 0xd0 && b[1] == 0x6b && b[2] == 0x33 && b[3] == 0x43 && b[4] == 0xcf;
}

static inline __attribute__((always_inline)) int judge(struct run *r, struct __sk_buff *skb)
{
	__u32 zero = 0, link = 14, *number, *configured;
	struct bpf_sock *sk = skb->sk;
	struct verdict_entry *entry;
	const struct identity *who = 0;
	struct scratch *s;
	struct plan *plan;
	struct packet *p;
	__u64 last;
	__u32 gen, observe, undecided = 0;

	r->config = config.lookup(&zero);
	if (!r->config || r->config->mode == MODE_PANIC) {
		count(COUNT_PASSED_PANIC);
		return OUTCOME_PASS;
	}
	number = generation.lookup(&zero);
	if (!number)
		return OUTCOME_DROP;
	gen = *number; /* once a run: one packet is never judged by two generations */
	if (sk) {
		sk = bpf_sk_fullsock(sk);
		if (sk)
			r->state = sockets.sk_storage_get(sk, 0, 0);
	}
	observe = r->config->mode == MODE_OBSERVE;
	if (r->state) {
		struct socket_state *state = r->state;

		if (state->flags & FLOW_INBOUND)
			return OUTCOME_PASS;
		if (state->generation == gen &&
		    (!state->expires || bpf_ktime_get_ns() < state->expires)) {
			if (state->verdict == VERDICT_ALLOW || state->verdict == VERDICT_IGNORE)
				return OUTCOME_PASS;
			if (state->verdict == VERDICT_UNDECIDED)
				undecided = 1;
			else if (state->verdict && !observe && !(state->flags & FLOW_OBSERVE)) {
				count(COUNT_DROPPED_FLOW);
				return OUTCOME_DROP;
			} else if (state->verdict) {
				count(COUNT_WOULD_DROP);
				return OUTCOME_PASS;
			}
		}
		who = &state->identity;
		if (state->flags & FLOW_OBSERVE)
			observe = 1;
	}

	s = r->s = scratch.lookup(&zero);
	if (!s)
		return OUTCOME_DROP;
	s->generation = gen;
	s->observe = observe;
	s->undecided = undecided;
	s->is_allowed = 0;
	p = &s->packet;
	__builtin_memset(p, 0, sizeof(*p));
	last = (__u64)skb->len - 1;
	if (last > PACKET_WINDOW - 1)
		last = PACKET_WINDOW - 1;
	BARRIER(last);
	last &= PACKET_WINDOW - 1;
	if (bpf_skb_load_bytes(skb, 0, s->window, last + 1))
		return to_posture(r, POSTURE_MALFORMED, COUNT_DROPPED_MALFORMED);
	zero = skb->ifindex;
	configured = interfaces.lookup(&zero);
	if (configured)
		link = *configured ? 14 : 0;
	switch (packet_parse(s->window, skb->len, link, p)) {
	case PACKET_OK:
		break;
	case PACKET_NOT_IP:
		count(COUNT_PASSED_NOT_IP);
		return OUTCOME_PASS;
	case PACKET_LINK_CONTROL:
		count(COUNT_PASSED_LINK_CONTROL);
		return OUTCOME_PASS;
	case PACKET_FRAGMENT:
		if (s->observe || (r->config->open & POSTURE_FRAGMENT)) {
			count(COUNT_PASSED_FRAGMENT);
			return OUTCOME_PASS;
		}
		count(COUNT_DROPPED_FRAGMENT);
		return OUTCOME_DROP;
	default:
		return to_posture(r, POSTURE_MALFORMED, COUNT_DROPPED_MALFORMED);
	}

	s->tcp = p->tuple.transport == PROTO_TCP;
	if (s->tcp && r->state && (p->tcp_flags & TCP_FLAG_SYN) && !(p->tcp_flags & TCP_FLAG_ACK)) {
		r->state->start = p->seq + 1;
		r->state->flags |= FLOW_STARTED;
	}
	if (s->tcp && !p->length) {
		/* A reset carries nothing and tells the peer of a flow that was cut. */
		if (p->tcp_flags & TCP_FLAG_RST)
			return OUTCOME_PASS;
		/* No full socket: the answer to an inbound SYN, or an ACK of a socket in TIME_WAIT. A socket that opened
		 * the connection itself has storage, so a simultaneous open does not slip through here. */
		if (!r->state && (!(p->tcp_flags & TCP_FLAG_SYN) || (p->tcp_flags & TCP_FLAG_ACK))) {
			count(COUNT_PASSED_INBOUND);
			return OUTCOME_PASS;
		}
	}

	/* Undecided in this very generation: what carries nothing has nothing to wait for. */
	if (r->state && s->undecided && s->tcp && !p->length && !(r->state->flags & FLOW_PAYLOAD_PASSED))
		return OUTCOME_PASS;

	if ((r->config->present & PRESENT_NEVER_DENY) &&
	    destination(&s->destination, DESTINATION_NEVER_DENY, p->tuple.transport, p->tuple.dport, p->tuple.dst)) {
		passed_unread(r);
		count(COUNT_PASSED_NEVER_DENY);
		return OUTCOME_PASS;
	}

	if (r->state && !r->state->identity.exe) {
		/* Looked up since: only if the process still is what it was when the socket was opened. */
		zero = r->state->identity.tgid;
		struct process *process = processes.lookup(&zero);

		if (process && process->exe && process->exec_stamp == r->state->identity.exec_stamp)
			r->state->identity.exe = process->exe;
	}
	__builtin_memset(&s->flow, 0, sizeof(s->flow));
	__builtin_memcpy(&s->flow.tuple, &p->tuple, sizeof(s->flow.tuple));
	s->flow.generation = s->generation;
	s->flow.cookie = SOCKET_COOKIE(skb);
	s->quic = !s->tcp && quic_initial(r);
	if (r->state)
		s->flow.part = s->tcp ? r->state->connections : r->state->identity.exe;

	if (r->config->present & PRESENT_SET_DEST) {
		entry = destination(&s->destination, DESTINATION_SET, p->tuple.transport, p->tuple.dport, p->tuple.dst);
		if (entry)
			return to_apply(r, entry, ORIGIN_SET, STAGE_CONNECT);
	}

	entry = flow_verdicts.lookup(&s->flow);
	s->is_known = standing(entry);
	if (s->is_known)
		__builtin_memcpy(&s->known, entry, sizeof(s->known));
	/* A socket lives longer than a strategy: no packet is observed by the word that stood for the one before. */
	s->observe = r->config->mode == MODE_OBSERVE;
	if (r->state)
		r->state->flags &= ~FLOW_OBSERVE;
	if (r->config->present & (PRESENT_STRATEGY_DEST | PRESENT_STRATEGY_ID)) {
		entry = strategy(r->config->present, who, &s->destination, p->tuple.transport, p->tuple.dport,
				 p->tuple.dst);
		if (entry && entry->verdict == VERDICT_IGNORE)
			return to_apply(r, entry, s->is_known && s->known.verdict == VERDICT_IGNORE ? ORIGIN_FLOW : ORIGIN_STRATEGY,
					STAGE_CONNECT);
		/* Before the flow's own verdict: what is only observed is not stopped by a deny that was noted for it. */
		if (entry && entry->verdict == VERDICT_OBSERVE) {
			s->observe = 1;
			if (r->state)
				r->state->flags |= FLOW_OBSERVE;
		}
	}
	if (s->is_known) {
		if (s->known.verdict == VERDICT_UNDECIDED)
			s->undecided = 1;
		else if (!(s->known.by_name && s->quic))
			return to_apply(r, &s->known, ORIGIN_FLOW, STAGE_PAYLOAD);
		else
			return to_hold(r, STAGE_PAYLOAD, COUNT_HELD_DATAGRAM);
	}

	plan = plan_of(s->generation);
	if (!plan)
		return to_hold(r, STAGE_CONNECT, COUNT_HELD_CONNECT);
	if (!s->undecided) {
		entry = connect_verdict(plan, &s->connect, who, p->tuple.transport, p->tuple.dport, p->tuple.dst);
		if (!entry)
			return to_hold(r, STAGE_CONNECT, s->tcp ? COUNT_HELD_CONNECT : COUNT_HELD_DATAGRAM);
		/* A person's word about a name comes before the policy's allow of the destination: then the name is read
		 * first, and the allow holds if nothing is said about it. */
		__builtin_memcpy(&s->allowed, entry, sizeof(s->allowed));
		s->is_allowed = s->allowed.verdict == VERDICT_ALLOW && (r->config->present & PRESENT_SET_NAME);
		if (s->allowed.verdict != VERDICT_UNDECIDED && !s->is_allowed)
			return to_apply(r, &s->allowed, ORIGIN_DEST, STAGE_CONNECT);
	}
	if (!s->tcp) {
		if (s->is_allowed && !s->quic)
			return to_apply(r, &s->allowed, ORIGIN_DEST, STAGE_CONNECT);
		return to_hold(r, STAGE_PAYLOAD, COUNT_HELD_DATAGRAM);
	}
	/* While it was observed its payload passed: now it is enforced, its start is gone. */
	if (r->state && !s->observe && (r->state->flags & FLOW_COPIED))
		r->state->flags |= FLOW_PAYLOAD_PASSED;
	if (r->state && !s->is_allowed && !(r->state->flags & FLOW_PAYLOAD_PASSED)) {
		r->state->verdict = VERDICT_UNDECIDED;
		r->state->generation = s->generation;
		r->state->expires = 0;
		r->state->stage = STAGE_PAYLOAD;
	}
	if (r->state && (r->state->flags & FLOW_PAYLOAD_PASSED))
		/* A new generation meets a flow in progress. Even a packet without payload waits: a download must not
		 * live on acknowledgements alone. */
		return to_hold(r, STAGE_PAYLOAD, COUNT_HELD_LATE);
	/* Without storage nobody would remember where the stream began: then the engine must have seen its SYN. */
	if (!p->length)
		return r->state ? OUTCOME_PASS : to_hold(r, STAGE_CONNECT, COUNT_HELD_CONNECT);
	/* Only the first byte of a stream may begin its hello. While it is held, or if it was dropped because nobody could
	 * take it, a later segment that looks like a hello of its own must wait for it. */
	if (!r->state || (r->state->flags & FLOW_HOLDING) || !(r->state->flags & FLOW_STARTED) ||
	    p->seq + !!(p->tcp_flags & TCP_FLAG_SYN) != r->state->start)
		return to_hold(r, STAGE_PAYLOAD, COUNT_HELD_PAYLOAD);
	return first_payload(r, plan, who);
}

int gate_egress(struct __sk_buff *skb)
{
	struct run r = {.skb = skb};
	int outcome = judge(&r, skb);

	if (outcome == OUTCOME_HOLD)
		outcome = hold(&r);
	switch (outcome) {
	case OUTCOME_PASS:
		return TC_ACT_UNSPEC;
	case OUTCOME_APPLY:
		return apply(&r);
	case OUTCOME_HOLD:
		return bpf_redirect(r.config->hold_ifindex, 0);
	case OUTCOME_POSTURE:
		return posture(&r);
	}
	return TC_ACT_SHOT;
}

/* The hold device's receiving end: packet sockets have had the frame already; the stack must not see it. */
int gate_discard(struct __sk_buff *skb)
{
	return TC_ACT_SHOT;
}

/* ---- cgroup: who, and at once no -------------------------------------------------------------------------------- */

static inline __attribute__((always_inline)) void who_is_it(struct identity *who)
{
	__u64 id = bpf_get_current_pid_tgid();
	struct process *process;
	__u32 tgid = id >> 32;

	who->tgid = tgid;
	who->tid = (__u32)id;
	who->uid = (__u32)bpf_get_current_uid_gid();
	who->cgroup = bpf_get_current_cgroup_id();
	process = processes.lookup(&tgid);
	if (process) {
		who->exe = process->exe;
		who->exec_stamp = process->exec_stamp;
	} else {
		struct process unknown = {.exec_stamp = bpf_ktime_get_ns()};

		who->exe = 0;
		who->exec_stamp = unknown.exec_stamp;
		if (processes.update(&tgid, &unknown))
			count(COUNT_LOST_PROCESS);
	}
}

/* Is a deny standing for this destination? The same precedence as at egress; the flow itself does not exist yet. */
static inline __attribute__((always_inline)) int refused(struct config *c, const struct identity *who,
							 __u64 cookie, __u8 transport, __u16 port, const __u8 *address)
{
	struct destination_key key = {};
	struct connect_key facts_key = {};
	struct verdict_entry *entry;
	struct verdict_event *event;
	__u32 zero = 0, *number;
	__u8 origin = ORIGIN_SET;
	struct plan *plan;

	if ((c->present & PRESENT_NEVER_DENY) &&
	    destination(&key, DESTINATION_NEVER_DENY, transport, port, address))
		return 0;
	number = generation.lookup(&zero);
	if (!number)
		return 0;
	entry = 0;
	if (c->present & PRESENT_SET_DEST)
		entry = destination(&key, DESTINATION_SET, transport, port, address);
	if (!entry && (c->present & (PRESENT_STRATEGY_DEST | PRESENT_STRATEGY_ID))) {
		entry = strategy(c->present, who, &key, transport, port, address);
		if (entry && entry->verdict != VERDICT_ENFORCE)
			return 0;
		entry = 0;
	}
	if (!entry) {
		plan = plan_of(*number);
		if (!plan)
			return 0;
		entry = connect_verdict(plan, &facts_key, who, transport, port, address);
		origin = ORIGIN_DEST;
	}
	if (!entry || (entry->verdict != VERDICT_DENY && entry->verdict != VERDICT_REJECT))
		return 0;
	count(COUNT_REFUSED_CONNECT);
	event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		count(COUNT_LOST_EVENT);
		return 1;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->header.time = bpf_ktime_get_ns();
	event->header.type = EVENT_REFUSED;
	__builtin_memcpy(&event->identity, who, sizeof(event->identity));
	event->tuple.transport = transport;
	event->tuple.dport = port;
	__builtin_memcpy(event->tuple.dst, address, 16);
	event->cookie = cookie;
	event->generation = *number;
	event->verdict_id = entry->id;
	event->verdict = entry->verdict;
	event->origin = origin;
	events.ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	return 1;
}

/* Returns what the hook returns: 1 go on, 0 EPERM. */
static inline __attribute__((always_inline)) int identify(struct bpf_sock_addr *ctx, __u8 transport,
							  const __u8 *address, int connecting)
{
	__u32 zero = 0;
	struct config *c = config.lookup(&zero);
	struct bpf_sock *sk = ctx->sk;
	struct socket_state *state = 0;

	if (!c || c->mode == MODE_PANIC)
		return 1;
	if (sk)
		state = sockets.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!state) {
		/* Without storage nobody would know whose packets these are. */
		count(COUNT_REFUSED_STORAGE);
		return c->mode == MODE_OBSERVE;
	}
	who_is_it(&state->identity);
	if (connecting) {
		state->verdict = VERDICT_NONE;
		state->generation = 0;
		state->verdict_id = 0;
		state->expires = 0;
		state->stage = STAGE_CONNECT;
		state->flags = 0;
		state->connections += 1;
	}
	if (c->mode != MODE_ENFORCE)
		return 1;
	return !refused(c, &state->identity, SOCKET_COOKIE(ctx), transport,
			__builtin_bswap16((__u16)ctx->user_port), address);
}

static inline __attribute__((always_inline)) int identify4(struct bpf_sock_addr *ctx, int connecting)
{
	__u8 address[16] = {};
	__u32 ip = ctx->user_ip4;

	address[10] = 0xff;
	address[11] = 0xff;
	__builtin_memcpy(address + 12, &ip, 4);
	return identify(ctx, ctx->protocol, address, connecting);
}

static inline __attribute__((always_inline)) int identify6(struct bpf_sock_addr *ctx, int connecting)
{
	__u32 address[4];

	address[0] = ctx->user_ip6[0];
	address[1] = ctx->user_ip6[1];
	address[2] = ctx->user_ip6[2];
	address[3] = ctx->user_ip6[3];
	return identify(ctx, ctx->protocol, (__u8 *)address, connecting);
}

/* One function for each attach type: BCC hands out the first loaded program for a name it has seen. */
int gate_connect4(struct bpf_sock_addr *ctx)
{
	return identify4(ctx, 1);
}

int gate_connect6(struct bpf_sock_addr *ctx)
{
	return identify6(ctx, 1);
}

int gate_sendmsg4(struct bpf_sock_addr *ctx)
{
	return identify4(ctx, 0);
}

int gate_sendmsg6(struct bpf_sock_addr *ctx)
{
	return identify6(ctx, 0);
}
