/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The gate: every packet that passes a guarded interface meets a standing verdict here, or is held.
 *
 *   gate_egress          TC egress      what leaves: pass, drop, or redirect to the hold device
 *                        TC ingress     of an inside interface: what leaves somebody behind this host
 *   gate_ingress         TC ingress     what comes in: the same three, for policies that judge it
 *   gate_release         TC egress      near end of the hold device: a released frame goes back into the stack
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
	__u32 quic; /* names count, and a QUIC connection may begin here */
	__u32 at;
	__u32 is_allowed;
	__u32 is_known;
	__u32 inbound; /* the flow was opened from outside */
	__u32 decided; /* enum outcome of socket storage, while a DNS message is still to be told */
	__u32 start;   /* of an inbound stream */
	__u32 before;  /* verdict_id of the generation before */
	__u32 is_dns;
	__u32 pad;
	__u32 outside; /* the socket was accepted */
	__u32 plain;   /* the packet is of the flow that the socket's verdict is about: no header needs to be read for it */
	__u32 answer;  /* it leaves in a flow that was opened from outside */
	__u32 stale;   /* a person has said something since the socket's verdict */
	__u32 pad2;
	__u32 kind;    /* of the interface: enum interface_kind */
	__u32 again;  /* the segment brings again what the verdict was read from */
	__u32 read;   /* apply() is for what was read of the stream, which ends before `judged` */
	__u32 judged;
	__u32 pad3;
	struct verdict_entry entry;   /* to apply: a copy, so that every way to apply() looks alike to the verifier */
	struct flow_verdict known;    /* the flow's own */
	struct verdict_entry allowed; /* the destination's standing allow, while the name is still to be read */
	__u8 window[PACKET_WINDOW];
	struct packet packet;
	struct tuple reversed;
	struct inbound_flow inbound_flow;
	struct flow_key flow;
	struct connect_key connect;
	struct destination_key destination;
	struct held held;
	struct name_key name_key;
	__u8 name_key_slack[64];
	__u8 name[NAME_END + 512];
	struct hello hello;
	struct dns_event dns;
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
MAP("lru_hash", flow_key, flow_verdict, flow_verdicts, FLOW_VERDICTS_MAX, 0);
ARRAY("array", struct kept_hello, hellos, HELLOS_MAX);
MAP("lru_hash", tuple, inbound_flow, inbound_flows, INBOUND_FLOWS_MAX, 0);
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
/* Read back what was written to map memory: to the verifier it is any number from now on, and states merge. */
#define FORGOTTEN(field) (*(volatile __u32 *)&(field))
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
	if (shape & ~(SHAPE_DEST | SHAPE_INBOUND)) {
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

/* `direction`: 0, or SHAPE_INBOUND for what comes in. */
static inline __attribute__((always_inline)) struct verdict_entry *
connect_verdict(const struct plan *plan, struct connect_key *key, const struct identity *who, __u8 transport,
		__u16 port, const __u8 *address, __u8 direction)
{
	_Pragma("clang loop unroll(disable)") for (int i = 0; i < SHAPES_MAX; i++)
	{
		struct verdict_entry *entry;

		if (i >= plan->connect_shapes_n)
			break;
		if ((plan->connect_shapes[i] & SHAPE_INBOUND) != direction)
			continue;
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
		event->flags = r->s->tcp ? r->state->flags : 0;
	} else {
		event->flags = FLOW_NO_STORAGE;
	}
	if (r->s->observe)
		event->flags |= FLOW_OBSERVE;
	if (r->s->inbound)
		event->flags |= FLOW_INBOUND;
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

/* Of ICMP, without its errors: queries and their answers (RFC 792, RFC 4443 4). */
static inline __attribute__((always_inline)) int is_icmp(const struct scratch *s)
{
	return s->packet.tuple.transport == PROTO_ICMP || s->packet.tuple.transport == PROTO_ICMPV6;
}

static inline __attribute__((always_inline)) int is_icmp_request(const struct scratch *s)
{
	__u8 type = WINDOW_AT(s->window, s->packet.payload);

	if (!s->packet.length)
		return 0;
	if (s->packet.tuple.transport == PROTO_ICMP)
		return type == 8 || type == 13;
	return type == 128;
}

static inline __attribute__((always_inline)) int is_icmp_answer(const struct scratch *s)
{
	__u8 type = WINDOW_AT(s->window, s->packet.payload);

	if (!s->packet.length)
		return 0;
	if (s->packet.tuple.transport == PROTO_ICMP)
		return type == 0 || type == 14;
	return type == 129;
}

/* The key in inbound_flows of a packet that comes in. */
static inline __attribute__((always_inline)) void inbound_key(struct scratch *s)
{
	__builtin_memcpy(&s->reversed, &s->packet.tuple, sizeof(s->reversed));
	if (is_icmp(s))
		s->reversed.dport = is_icmp_answer(s) ? ICMP_ANSWER_IN : ICMP_REQUEST_IN;
}

/* What stands for a flow that was opened from outside: the tuple is all there is of it, before its socket exists. */
static inline __attribute__((always_inline)) void remember_inbound(struct scratch *s, __u8 verdict, __u8 flags)
{
	struct inbound_flow *flow = &s->inbound_flow;

	__builtin_memset(flow, 0, sizeof(*flow));
	if (verdict != VERDICT_UNDECIDED) {
		flow->expires = s->entry.expires;
		flow->verdict_id = s->entry.id;
		flow->by_name = s->entry.by_name;
	}
	flow->generation = s->generation;
	flow->start = s->start;
	flow->judged = s->start;
	flow->verdict = verdict;
	flow->flags = flags;
	flow->opened_by = OPENED_OUTSIDE;
	inbound_key(s);
	if (inbound_flows.update(&s->reversed, flow))
		count(COUNT_LOST_INBOUND_FLOW);
}

/* A standing verdict meets a flow: remember it for the flow, tell the engine once, pass or drop. */
static inline __attribute__((always_inline)) int apply(struct run *r)
{
	struct verdict_entry *entry = &r->s->entry;
	__u32 origin = r->s->origin, stage = r->s->stage;
	struct scratch *s = r->s;
	struct socket_state *state = r->state;
	int passes = entry->verdict == VERDICT_ALLOW || entry->verdict == VERDICT_IGNORE;

	if (s->inbound) {
		/* A refused datagram is no flow: the next one meets the same verdict, and strangers must not push the flows of
		 * others out of the table. */
		if (passes || s->observe || s->tcp)
			remember_inbound(s, entry->verdict, passes || s->observe ? FLOW_PAYLOAD_PASSED : 0);
	} else if (state && s->packet.tuple.transport == PROTO_TCP) {
		state->verdict = entry->verdict;
		state->verdict_id = entry->id;
		state->generation = r->s->generation;
		state->orders = r->config->orders;
		state->expires = entry->expires;
		state->origin = origin;
		state->flags &= ~FLOW_HOLDING;
		if (passes || r->s->observe)
			state->flags |= FLOW_PAYLOAD_PASSED;
		if (FORGOTTEN(s->read))
			state->judged = s->judged;
	} else if (origin != ORIGIN_FLOW) {
		struct flow_verdict copy = {.entry = {.expires = entry->expires,
						      .id = entry->id,
						      .verdict = entry->verdict,
						      .by_name = entry->by_name}};

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
	count(s->inbound	      ? COUNT_DROPPED_INBOUND
	      : origin == ORIGIN_FLOW ? COUNT_DROPPED_FLOW
	      : origin == ORIGIN_DEST ? COUNT_DROPPED_DEST
	      : origin == ORIGIN_NAME ? COUNT_DROPPED_NAME
				      : COUNT_DROPPED_SET);
	return TC_ACT_SHOT;
}

/* What passes without having been read may have been the start of the stream: from now on no payload of this flow may
 * be taken for it, or a hello in the middle would be believed. */
static inline __attribute__((always_inline)) void passed_unread(struct run *r)
{
	if (r->state && r->s->tcp && r->s->packet.length)
		r->state->flags |= FLOW_PAYLOAD_PASSED;
}

static inline __attribute__((always_inline)) int posture(struct run *r)
{
	/* Refused already; only the sender is not told. */
	if (r->s->stage == STAGE_REJECT)
		return TC_ACT_SHOT;
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
static inline __attribute__((always_inline)) int hold(struct run *r, __u8 hook)
{
	struct scratch *s = r->s;
	struct held *held_by = &s->held, *waiting;
	__u32 at = 0, who;
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

	/* A frame on hold is known by its addresses and ports. Two sockets can have the same (SO_REUSEPORT, raw sockets,
	 * ICMP), and one socket two programs: the second must not be judged as the first, nor the first as the second. */
	waiting = held.lookup(&s->packet.tuple);
	who = r->state && !s->inbound ? r->state->identity.tgid : 0;
	if (waiting && waiting->number >= *taken &&
	    (waiting->cookie != s->flow.cookie || waiting->identity.tgid != who))
		return to_posture(r, POSTURE_HOLD_FULL, COUNT_DROPPED_HOLD_FULL);
	__builtin_memset(held_by, 0, sizeof(*held_by));
	held_by->number = *redirected;
	held_by->cookie = s->flow.cookie;
	held_by->time = now;
	held_by->ifindex = r->skb->ifindex;
	held_by->generation = r->s->generation;
	held_by->part = s->flow.part;
	held_by->stage = r->s->stage;
	held_by->hook = hook;
	held_by->answer = s->answer;
	if (s->inbound) {
		held_by->flags = FLOW_INBOUND | FLOW_NO_STORAGE | s->inbound_flow.flags;
		held_by->verdict_id = s->before;
		held_by->start = s->start;
	} else if (r->state) {
		__builtin_memcpy(&held_by->identity, &r->state->identity, sizeof(held_by->identity));
		/* Of a datagram, storage knows its sender alone: the rest is about a connection, of which it may be the tunnel. */
		if (s->tcp) {
			held_by->verdict_id = r->state->verdict_id;
			held_by->flags = r->state->flags;
			held_by->start = r->state->start;
			held_by->judged = r->state->judged;
			if (s->packet.length && s->stage != STAGE_REJECT && s->stage != STAGE_AGAIN)
				r->state->flags |= s->observe ? FLOW_HOLDING | FLOW_COPIED : FLOW_HOLDING;
		}
	} else {
		held_by->flags = FLOW_NO_STORAGE;
	}
	if (r->s->observe)
		held_by->flags |= FLOW_CLONED | FLOW_OBSERVE;
	if (held.update(&s->packet.tuple, held_by))
		return to_posture(r, POSTURE_MAP_FULL, COUNT_DROPPED_MAP_FULL);
	__sync_fetch_and_add(redirected, 1);
	count(r->s->why);
	/* By this gate_hold() tells what comes from here. */
	at = r->skb->mark;
	r->skb->mark = r->config->release_mark;
	if (r->s->observe) {
		bpf_clone_redirect(r->skb, r->config->hold_ifindex, 0);
		r->skb->mark = at;
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

	/* An urgent byte is one that the server need not read where it stands (RFC 9293 3.8.5): no plain hello. */
	if (s->packet.tcp_flags & TCP_FLAG_URG)
		return to_hold(r, STAGE_PAYLOAD, COUNT_HELD_PAYLOAD);
	if (last > HELLO_MASK)
		last = HELLO_MASK;
	BARRIER(last);
	last &= HELLO_MASK;
	/* Into the packet's own memory: its sender may still write to where sendfile() or MSG_ZEROCOPY took it from, and
	 * what leaves must be what is read here. */
	if (bpf_skb_pull_data(r->skb, s->packet.payload + last + 1) ||
	    bpf_skb_load_bytes(r->skb, s->packet.payload, s->hello.bytes, last + 1))
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

/* Keep the hello that has just been judged: the engine compares with it what is sent again. */
static inline __attribute__((always_inline)) void keep_hello(struct run *r)
{
	struct scratch *s = r->s;
	__u32 at = s->flow.cookie & (HELLOS_MAX - 1);
	struct kept_hello *kept = hellos.lookup(&at);
	/* hello_name() has seen that it is whole. */
	__u64 last = (((__u64)s->hello.bytes[3] << 8) | s->hello.bytes[4]) + 4;

	BARRIER(last);
	last &= HELLO_MASK;
	s->read = 1;
	s->judged = r->state->start + last + 1;
	if (!kept)
		return;
	/* Whoever reads it while it is written compares with something else, and refuses. */
	kept->length = 0;
	__builtin_memcpy(&kept->tuple, &s->packet.tuple, sizeof(kept->tuple));
	kept->start = r->state->start;
	if (!bpf_probe_read_kernel(kept->bytes, last + 1, s->hello.bytes))
		kept->length = last + 1;
}

/* No more of a stream is read than this, and no segment is longer. */
#define JUDGED_MOST (1U << 20)
/* A sequence number that far beyond: what was read has been acknowledged long since (no window is larger, RFC 7323
 * section 2.3), and the numbers may come round. */
#define SEEN_LAST (1U << 30)

/* Does a segment bring again what its flow was judged by, which ends before `judged`? */
static inline __attribute__((always_inline)) int comes_again(const struct packet *p, __u32 judged)
{
	__u32 behind = judged - (p->seq + !!(p->tcp_flags & TCP_FLAG_SYN));

	return p->length && behind - 1 < JUDGED_MOST;
}

static inline __attribute__((always_inline)) int is_far_beyond(const struct packet *p, __u32 judged)
{
	__u32 beyond = p->seq - judged;

	return beyond >= SEEN_LAST && beyond < 2 * SEEN_LAST;
}

/* A QUIC long header (RFC 8999 5.1; the bit beside it may be greased, RFC 9287): a new connection may begin on a flow that has a
 * verdict by name already. Whatever its version, which the engine knows more of, and its type: an Initial may stand
 * behind a 0-RTT or a handshake packet in the same datagram (RFC 9000 12.2), and each datagram of a super-packet
 * (UDP_SEGMENT) is one of its own. One with an Initial has 1,200 bytes or more, or its server discards it (14.1). */
#define DATAGRAM_LEAST 1200
#define SEGMENTS_MAX 64

static inline __attribute__((always_inline)) int quic_long_header(struct run *r)
{
	struct scratch *s = r->s;
	__u32 length = s->packet.length, step = r->skb->gso_size;

	if (!step || step > length)
		step = length;
	if (step < DATAGRAM_LEAST)
		return 0;
	/* As for a hello: with MSG_ZEROCOPY it is still the sender's memory. */
	if (bpf_skb_pull_data(r->skb, s->packet.payload + length))
		return 1;
	s->at = s->packet.payload;
	_Pragma("clang loop unroll(disable)") for (int i = 0; i < SEGMENTS_MAX; i++)
	{
		__u8 first = 0;
		__u32 at = FORGOTTEN(s->at);

		if (at + DATAGRAM_LEAST > s->packet.payload + length)
			break;
		if (bpf_skb_load_bytes(r->skb, at, &first, 1))
			break;
		if (first & 0x80)
			return 1;
		s->at = at + step;
	}
	return 0;
}

/* A frame that the engine has let go: what it was marked with is nobody else's business. */
static inline __attribute__((always_inline)) int released(struct __sk_buff *skb)
{
	skb->mark = 0;
	skb->priority = 0;
	count(COUNT_PASSED_RELEASED);
	return OUTCOME_PASS;
}

#define SOCKET_TIME_WAIT 6
#define SOCKET_LISTEN 10
#define SOCKET_NEW_SYN_RECV 12

/* Read the headers into s->packet. Returns enum packet_status. */
static inline __attribute__((always_inline)) int read_headers(struct run *r)
{
	struct scratch *s = r->s;
	__u64 last = (__u64)r->skb->len - 1;

	__builtin_memset(&s->packet, 0, sizeof(s->packet));
	if (last > PACKET_WINDOW - 1)
		last = PACKET_WINDOW - 1;
	BARRIER(last);
	last &= PACKET_WINDOW - 1;
	if (bpf_skb_load_bytes(r->skb, 0, s->window, last + 1))
		return PACKET_MALFORMED;
	return packet_parse(s->window, r->skb->len, s->kind & INTERFACE_ETHERNET ? 14 : 0, &s->packet);
}

/* The interface's kind. One that nobody has told of yet carries a link header, as all that can be guarded do. */
static inline __attribute__((always_inline)) __u32 kind_of(__u32 ifindex)
{
	__u32 *kind = interfaces.lookup(&ifindex);

	return kind ? *kind : INTERFACE_ETHERNET;
}

/* The key in inbound_flows of a packet that goes out: that of what comes in on the same flow. */
static inline __attribute__((always_inline)) void reverse(struct scratch *s)
{
	const struct tuple *t = &s->packet.tuple;

	__builtin_memset(&s->reversed, 0, sizeof(s->reversed));
	__builtin_memcpy(s->reversed.src, t->dst, 16);
	__builtin_memcpy(s->reversed.dst, t->src, 16);
	s->reversed.sport = t->dport;
	s->reversed.dport = t->sport;
	s->reversed.transport = t->transport;
	if (is_icmp(s))
		s->reversed.dport = is_icmp_request(s) ? ICMP_ANSWER_IN
				    : is_icmp_answer(s) ? ICMP_REQUEST_IN
							: ICMP_OTHER;
}

#define DNS_PORT 53
#define DNS_QUESTION_BYTES 512 /* a power of two, as DNS_BYTES is */

/* Tell the engine of a DNS message, before anybody can act on it: names that answered for an address are a fact. */
static inline __attribute__((always_inline)) void tell_dns(struct run *r, __u8 ingress)
{
	struct scratch *s = r->s;
	struct dns_event *event = &s->dns;
	__u64 last = (__u64)s->packet.length - 1;
	/* Anybody can send long datagrams to port 53: more than a question has is not worth the ring's room. */
	const __u64 most = ingress ? DNS_BYTES : DNS_QUESTION_BYTES;

	/* A stream is read from its SYN on; an acknowledgement says nothing. */
	if (!s->packet.length && !(s->packet.tcp_flags & (TCP_FLAG_SYN | TCP_FLAG_FIN | TCP_FLAG_RST)))
		return;
	event->length = 0;
	event->truncated = 0;
	if (s->packet.length) {
		event->truncated = last > most - 1;
		if (last > most - 1)
			last = most - 1;
		BARRIER(last);
		last &= most - 1;
		if (bpf_skb_load_bytes(r->skb, s->packet.payload, event->payload, last + 1))
			return;
		event->length = last + 1;
	} else {
		last = 0;
	}
	event->header.time = bpf_ktime_get_ns();
	event->header.type = EVENT_DNS;
	event->header.pad = 0;
	__builtin_memcpy(&event->tuple, &s->packet.tuple, sizeof(event->tuple));
	event->seq = s->packet.seq + !!(s->packet.tcp_flags & TCP_FLAG_SYN);
	event->ingress = ingress;
	event->tcp_flags = s->packet.tcp_flags;
	event->pad = 0;
	event->ifindex = r->skb->ifindex;
	if (events.ringbuf_output(event, __builtin_offsetof(struct dns_event, payload) + last + 1, BPF_RB_NO_WAKEUP))
		count(COUNT_LOST_EVENT);
}

/* How long what comes in by a datagram's reversed tuple is taken for an answer to it. */
#define ANSWER_NS 180000000000ULL

/* A datagram has left: what comes back is an answer, not somebody's first packet. */
static inline __attribute__((always_inline)) void sent(struct run *r)
{
	struct scratch *s = r->s;
	struct inbound_flow *known;
	__u64 until = bpf_ktime_get_ns() + ANSWER_NS;

	reverse(s);
	if (is_icmp(s) && s->reversed.dport != ICMP_ANSWER_IN)
		return;
	known = inbound_flows.lookup(&s->reversed);
	if (known && known->opened_by == OPENED_HERE) {
		known->expires = until;
		return;
	}
	if (known && known->opened_by == OPENED_OUTSIDE && !is_icmp(s) && known->verdict != VERDICT_DENY &&
	    known->verdict != VERDICT_REJECT)
		return;
	__builtin_memset(&s->inbound_flow, 0, sizeof(s->inbound_flow));
	s->inbound_flow.expires = until;
	s->inbound_flow.opened_by = OPENED_HERE;
	if (inbound_flows.update(&s->reversed, &s->inbound_flow))
		count(COUNT_LOST_INBOUND_FLOW);
}

/* What leaves in a flow that was opened from outside: it goes with the verdict on what comes in. */
static inline __attribute__((always_inline)) int answer(struct run *r, struct inbound_flow *known)
{
	struct scratch *s = r->s;

	s->inbound = 1;
	s->answer = 1;
	s->before = 0;
	s->start = 0;
	s->inbound_flow.flags = FLOW_PAYLOAD_PASSED;
	__builtin_memset(&s->flow, 0, sizeof(s->flow));
	s->flow.cookie = SOCKET_COOKIE(r->skb);
	if (known) {
		if (known->generation == s->generation &&
		    (!known->expires || bpf_ktime_get_ns() < known->expires)) {
			if (known->verdict == VERDICT_ALLOW || known->verdict == VERDICT_IGNORE) {
				/* A datagram socket answers one and writes to others. */
				if (r->state && s->tcp) {
					r->state->verdict = VERDICT_ALLOW;
					r->state->generation = s->generation;
					r->state->orders = r->config->orders;
					r->state->expires = known->expires;
				}
				return OUTCOME_PASS;
			}
			/* The server speaks first where the client's first payload is what it will be judged by. */
			if (known->verdict == VERDICT_UNDECIDED)
				return OUTCOME_PASS;
			if (s->observe) {
				count(COUNT_WOULD_DROP);
				return OUTCOME_PASS;
			}
			count(COUNT_DROPPED_INBOUND);
			return OUTCOME_DROP;
		}
		s->before = known->verdict_id;
	}
	return to_hold(r, STAGE_PAYLOAD, COUNT_HELD_LATE);
}

/* A TCP packet without any option of its network header, to the peer that the socket's verdict is about, and behind
 * what that was read from. */
static inline __attribute__((always_inline)) int is_plain(struct __sk_buff *skb, const struct socket_state *state)
{
	const __u8 *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end, *ports;
	const __u32 *peer = (const __u32 *)state->peer, *to;

	if (data + 14 + 20 + 8 > end || !state->peer_port)
		return 0;
	if (data[12] == 0x08 && data[13] == 0x00) {
		if (data[14] != 0x45 || data[14 + 9] != PROTO_TCP || (data[14 + 6] & 0x3f) || data[14 + 7])
			return 0;
		to = (const __u32 *)(data + 14 + 16);
		if (peer[0] || peer[1] || peer[2] != __builtin_bswap32(0x0000ffff) || peer[3] != to[0])
			return 0;
		ports = data + 14 + 20;
	} else if (data[12] == 0x86 && data[13] == 0xdd) {
		if (data + 14 + 40 + 8 > end || (data[14] & 0xf0) != 0x60 || data[14 + 6] != PROTO_TCP)
			return 0;
		to = (const __u32 *)(data + 14 + 24);
		if (peer[0] != to[0] || peer[1] != to[1] || peer[2] != to[2] || peer[3] != to[3])
			return 0;
		ports = data + 14 + 40;
	} else {
		return 0;
	}
	if (state->judged != state->start &&
	    __builtin_bswap32(*(const __u32 *)(ports + 4)) - state->judged >= SEEN_LAST)
		return 0;
	return ((__u16)ports[2] << 8 | ports[3]) == state->peer_port &&
	       (!state->local_port || ((__u16)ports[0] << 8 | ports[1]) == state->local_port);
}

static inline __attribute__((always_inline)) int is_passing(const struct socket_state *state)
{
	return state->verdict == VERDICT_ALLOW || state->verdict == VERDICT_IGNORE;
}

/* What socket storage says of a packet of its flow. OUTCOME_APPLY: nothing; with *stale: what a person said comes first. */
static inline __attribute__((always_inline)) int by_socket(struct run *r, __u32 gen, __u32 *undecided, __u32 *stale)
{
	struct socket_state *state = r->state;

	if ((state->flags & FLOW_INBOUND) && !(r->config->present & PRESENT_INBOUND))
		return OUTCOME_PASS;
	if (stale && state->orders != r->config->orders) {
		*stale = 1;
		return OUTCOME_APPLY;
	}
	if (state->generation != gen || (state->expires && bpf_ktime_get_ns() >= state->expires))
		return OUTCOME_APPLY;
	if (is_passing(state))
		return OUTCOME_PASS;
	if (state->verdict == VERDICT_UNDECIDED) {
		*undecided = 1;
		return OUTCOME_APPLY;
	}
	if (!state->verdict)
		return OUTCOME_APPLY;
	if (r->config->mode == MODE_OBSERVE || (state->flags & FLOW_OBSERVE)) {
		count(COUNT_WOULD_DROP);
		return OUTCOME_PASS;
	}
	count(COUNT_DROPPED_FLOW);
	return OUTCOME_DROP;
}

/* The first packet of a connection says whom its socket's storage is about. One that is for somebody else has none. */
static inline __attribute__((always_inline)) void recognise(struct run *r)
{
	struct socket_state *state = r->state;
	struct scratch *s = r->s;
	struct packet *p = &s->packet;
	const __u64 *peer = (const __u64 *)state->peer, *to = (const __u64 *)p->tuple.dst;
	__u32 opening = (p->tcp_flags & TCP_FLAG_SYN) && !(p->tcp_flags & TCP_FLAG_ACK), undecided = 0, stale = 0;

	if (state->peer_port == p->tuple.dport && peer[0] == to[0] && peer[1] == to[1] &&
	    (!state->local_port || state->local_port == p->tuple.sport)) {
		s->decided = by_socket(r, s->generation, &undecided, &stale);
		s->undecided = undecided;
		s->stale = stale;
		if (state->flags & FLOW_OBSERVE)
			s->observe = 1;
		if (state->judged != state->start) {
			if (is_far_beyond(p, state->judged))
				state->judged = state->start;
			else
				s->again = comes_again(p, state->judged);
			/* Its verdict holds only for the same bytes: further down. */
			if (s->again && s->decided == OUTCOME_PASS && is_passing(state)) {
				s->decided = OUTCOME_APPLY;
				s->stale = 1;
			}
		}
	} else if (opening || !state->peer_port) {
		state->peer_port = p->tuple.dport;
		state->local_port = p->tuple.sport;
		__builtin_memcpy(state->peer, p->tuple.dst, 16);
		state->verdict = VERDICT_NONE;
		state->generation = 0;
		state->judged = state->start;
		if (opening)
			state->flags &= ~FLOW_INBOUND;
	} else {
		r->state = 0;
	}
}

static inline __attribute__((always_inline)) int judge(struct run *r, struct __sk_buff *skb)
{
	__u32 zero = 0, *number;
	struct bpf_sock *sk = skb->sk;
	struct verdict_entry *entry;
	struct flow_verdict *known;
	const struct identity *who = 0;
	struct scratch *s;
	struct plan *plan;
	struct packet *p;
	__u32 gen, observe, undecided = 0, dns = 0, decided = OUTCOME_APPLY, plain = 0, forwarded = 0, stale = 0;

	r->config = config.lookup(&zero);
	if (!r->config || r->config->mode == MODE_PANIC) {
		count(COUNT_PASSED_PANIC);
		return OUTCOME_PASS;
	}
	/* Only at the ingress of an inside interface: what leaves here can be marked by its sender. */
	if (skb->mark && skb->mark == r->config->release_mark && skb->ingress_ifindex == skb->ifindex)
		return released(skb);
	number = generation.lookup(&zero);
	if (!number)
		return OUTCOME_DROP;
	gen = *number; /* once a run: one packet is never judged by two generations */
	if (sk) {
		sk = bpf_sk_fullsock(sk);
		if (sk) {
			r->state = sockets.sk_storage_get(sk, 0, 0);
			if (r->config->present & PRESENT_DNS)
				dns = sk->dst_port == __builtin_bswap16(DNS_PORT);
		}
	} else if (skb->ingress_ifindex && skb->ingress_ifindex != skb->ifindex) {
		__u32 from = skb->ingress_ifindex, *inside = interfaces.lookup(&from);

		if (inside && (*inside & INTERFACE_INSIDE)) {
			count(COUNT_PASSED_FORWARDED);
			if (!(r->config->present & PRESENT_INBOUND))
				return OUTCOME_PASS;
			forwarded = 1;
		}
		/* An interface that has just appeared: nobody can have judged there what it brings. */
		if (!inside && (r->config->present & PRESENT_INSIDE) && r->config->mode == MODE_ENFORCE &&
		    !(r->config->open & POSTURE_UNKNOWN_INTERFACE)) {
			count(COUNT_DROPPED_INTERFACE);
			return OUTCOME_DROP;
		}
	}
	observe = r->config->mode == MODE_OBSERVE;
	if (r->state) {
		plain = is_plain(skb, r->state);
		if (plain) {
			decided = by_socket(r, gen, &undecided, &stale);
			if (decided == OUTCOME_DROP || (decided == OUTCOME_PASS && !dns))
				return decided;
		}
		/* Of a packet that is not plain it is not known yet whom it is for. */
		if (plain && (r->state->flags & FLOW_OBSERVE))
			observe = 1;
	}

	s = r->s = scratch.lookup(&zero);
	if (!s)
		return OUTCOME_DROP;
	s->generation = gen;
	s->observe = observe;
	s->undecided = undecided;
	s->decided = forwarded ? OUTCOME_PASS : decided;
	s->plain = plain;
	s->stale = stale;
	s->is_allowed = 0;
	s->inbound = 0;
	s->answer = 0;
	s->again = 0;
	s->read = 0;
	s->tcp = 0;
	s->is_dns = 0;
	s->stage = STAGE_CONNECT;
	p = &s->packet;
	s->kind = kind_of(skb->ifindex);
	switch (read_headers(r)) {
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
	s->is_dns = (r->config->present & PRESENT_DNS) && p->tuple.dport == DNS_PORT && !forwarded;
	if (r->state && s->tcp && !FORGOTTEN(s->plain))
		recognise(r);
	if (FORGOTTEN(s->decided) != OUTCOME_APPLY)
		return FORGOTTEN(s->decided) == OUTCOME_PASS ? OUTCOME_PASS : OUTCOME_DROP;
	s->outside = 0;
	if (r->state) {
		who = &r->state->identity;
		/* What a tunnel carries a connection in leaves through the connection's own socket, but nobody opened it. */
		if (s->tcp)
			s->outside = r->state->flags & FLOW_INBOUND;
	}
	if (s->tcp && r->state && (p->tcp_flags & TCP_FLAG_SYN) && !(p->tcp_flags & TCP_FLAG_ACK)) {
		/* The same SYN once more is no other stream: it may have carried what was judged (RFC 7413). */
		if (r->state->start != p->seq + 1)
			r->state->judged = p->seq + 1;
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
			/* Which byte is urgent is told ahead of it as well, and the server then leaves it out of what it reads
			 * (RFC 6093 3.4): not the hello that is judged. */
			if (p->tcp_flags & TCP_FLAG_URG)
				return to_posture(r, POSTURE_MALFORMED, COUNT_DROPPED_MALFORMED);
			count(COUNT_PASSED_INBOUND);
			return OUTCOME_PASS;
		}
	}

	/* At an inside interface the other end was judged where it came in. */
	if (FORGOTTEN(s->outside) && (s->kind & INTERFACE_INSIDE))
		return OUTCOME_PASS;
	if ((r->config->present & PRESENT_INBOUND) && (FORGOTTEN(s->outside) || !s->tcp || !r->state)) {
		struct inbound_flow *from_outside;

		reverse(s);
		from_outside = inbound_flows.lookup(&s->reversed);
		/* A question is no answer, even to an answer that nobody had asked for. Nor is there anything to answer in a
		 * datagram that was refused: or one with a made-up source would keep this host from writing there. */
		if (from_outside && !s->tcp &&
		    ((is_icmp(s) && s->reversed.dport != ICMP_REQUEST_IN) || from_outside->verdict == VERDICT_DENY ||
		     from_outside->verdict == VERDICT_REJECT))
			from_outside = 0;
		if (FORGOTTEN(s->outside) || (from_outside && from_outside->opened_by == OPENED_OUTSIDE)) {
			plan = plan_of(s->generation);
			BARRIER(plan);
			if (!plan || plan->inbound)
				return answer(r, from_outside);
			if (FORGOTTEN(s->outside))
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
	if (r->state)
		s->flow.part = s->tcp ? r->state->connections : r->state->identity.exe;

	if (r->config->present & PRESENT_SET_DEST) {
		entry = destination(&s->destination, DESTINATION_SET, p->tuple.transport, p->tuple.dport, p->tuple.dst);
		if (entry)
			return to_apply(r, entry, ORIGIN_SET, STAGE_CONNECT);
	}

	known = flow_verdicts.lookup(&s->flow);
	s->is_known = known && standing(&known->entry);
	if (s->is_known) {
		if (s->tcp && known->read) {
			if (is_far_beyond(p, known->judged))
				known->read = 0;
			else if (comes_again(p, known->judged))
				s->again = 1;
		}
		__builtin_memcpy(&s->known, known, sizeof(s->known));
	}
	s->quic = !s->tcp && ((r->config->present & PRESENT_SET_NAME) || (s->is_known && s->known.entry.by_name));
	if (FORGOTTEN(s->quic))
		s->quic = quic_long_header(r);
	/* What one stream carried says nothing of the next one with its ports. */
	if (s->tcp && !r->state && s->known.entry.by_name && (p->tcp_flags & TCP_FLAG_SYN) &&
	    !(p->tcp_flags & TCP_FLAG_ACK))
		s->is_known = 0;
	/* A socket lives longer than a strategy: no packet is observed by the word that stood for the one before. */
	s->observe = r->config->mode == MODE_OBSERVE;
	if (r->state && s->tcp)
		r->state->flags &= ~FLOW_OBSERVE;
	if (r->config->present & (PRESENT_STRATEGY_DEST | PRESENT_STRATEGY_ID)) {
		entry = strategy(r->config->present, who, &s->destination, p->tuple.transport, p->tuple.dport,
				 p->tuple.dst);
		if (entry && entry->verdict == VERDICT_IGNORE)
			return to_apply(
				r, entry,
				s->is_known && s->known.entry.verdict == VERDICT_IGNORE ? ORIGIN_FLOW : ORIGIN_STRATEGY,
				STAGE_CONNECT);
		/* Before the flow's own verdict: what is only observed is not stopped by a deny that was noted for it. */
		if (entry && entry->verdict == VERDICT_OBSERVE) {
			s->observe = 1;
			if (r->state && s->tcp)
				r->state->flags |= FLOW_OBSERVE;
		}
	}
	/* Nobody has said anything about this flow: what was decided holds. */
	if (r->state && FORGOTTEN(s->stale)) {
		r->state->orders = r->config->orders;
		decided = by_socket(r, s->generation, &undecided, 0);
		s->undecided = undecided;
		if (decided == OUTCOME_PASS && FORGOTTEN(s->again) && is_passing(r->state))
			return to_hold(r, STAGE_AGAIN, COUNT_HELD_AGAIN);
		if (decided != OUTCOME_APPLY)
			return decided;
	}
	if (s->is_known) {
		if (s->known.entry.verdict == VERDICT_UNDECIDED) {
			s->undecided = 1;
		} else if (s->quic) {
			return to_hold(r, STAGE_PAYLOAD, COUNT_HELD_DATAGRAM);
		} else if (FORGOTTEN(s->again) && s->known.entry.verdict == VERDICT_ALLOW) {
			return to_hold(r, STAGE_AGAIN, COUNT_HELD_AGAIN);
		} else {
			s->read = s->tcp && s->known.read;
			s->judged = s->known.judged;
			return to_apply(r, &s->known.entry, ORIGIN_FLOW, STAGE_PAYLOAD);
		}
	}

	plan = plan_of(s->generation);
	if (!plan)
		return to_hold(r, STAGE_CONNECT, COUNT_HELD_CONNECT);
	if (!s->undecided) {
		entry = connect_verdict(plan, &s->connect, who, p->tuple.transport, p->tuple.dport, p->tuple.dst, 0);
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
		r->state->orders = r->config->orders;
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
	decided = first_payload(r, plan, who);
	if (decided == OUTCOME_APPLY && s->entry.verdict == VERDICT_ALLOW)
		keep_hello(r);
	return decided;
}

/* What judge() found out, done. */
static inline __attribute__((always_inline)) int carry_out(struct run *r, int outcome, __u8 hook)
{
	int action = TC_ACT_SHOT;

	if (outcome == OUTCOME_APPLY) {
		action = apply(r);
		/* The engine tells the sender: a reset or an ICMP error is no work for the packet path. */
		if (action == TC_ACT_SHOT && r->s->entry.verdict == VERDICT_REJECT)
			outcome = to_hold(r, STAGE_REJECT, COUNT_HELD_REJECT);
	}
	if (outcome == OUTCOME_HOLD)
		outcome = hold(r, hook);
	if (outcome == OUTCOME_HOLD)
		return bpf_redirect(r->config->hold_ifindex, 0);
	if (outcome == OUTCOME_POSTURE)
		action = posture(r);
	return outcome == OUTCOME_PASS ? TC_ACT_UNSPEC : action;
}

int gate_egress(struct __sk_buff *skb)
{
	struct run r = {.skb = skb};
	int outcome = judge(&r, skb), action;

	if (r.s && FORGOTTEN(r.s->is_dns))
		tell_dns(&r, 0);
	action = carry_out(&r, outcome, r.s && FORGOTTEN(r.s->kind) & INTERFACE_INSIDE ? HOOK_INGRESS : HOOK_EGRESS);

	if (action == TC_ACT_UNSPEC && r.s && !r.s->tcp && !r.s->inbound && (r.config->present & PRESENT_INBOUND) &&
	    r.s->packet.tuple.transport)
		sent(&r);
	return action;
}

/* ---- TC ingress ------------------------------------------------------------------------------------------------- */

/* Errors about a flow that left from here come from anywhere on its way; the stack looks into the packet they quote
 * (RFC 1122 3.2.2, RFC 4443 2.4). */
static inline __attribute__((always_inline)) int is_icmp_error(const struct scratch *s)
{
	__u8 type = WINDOW_AT(s->window, s->packet.payload);

	/* packet_parse() has seen the type of ICMPv6 inside the window; ICMP lies behind at most 82 bytes. */
	if (!s->packet.length)
		return 0;
	if (s->packet.tuple.transport == PROTO_ICMP)
		return type == 3 || type == 4 || type == 11 || type == 12;
	return s->packet.tuple.transport == PROTO_ICMPV6 && type >= 1 && type <= 4;
}

static inline __attribute__((always_inline)) int is_mapped(const __u8 *address)
{
	const __u32 *words = (const __u32 *)address;

	return !words[0] && !words[1] && words[2] == __builtin_bswap32(0x0000ffff);
}

/* The socket that a TCP segment comes in for: its state, 0 for none. `accepted`: its connection was opened from outside. */
static inline __attribute__((always_inline)) __u32 socket_of(struct __sk_buff *skb, struct scratch *s, __u32 *accepted)
{
	const struct tuple *t = &s->packet.tuple;
	struct bpf_sock_tuple tuple = {};
	struct socket_state *state;
	struct bpf_sock *sk, *full;
	__u32 size, found;

	if (is_mapped(t->src)) {
		__builtin_memcpy(&tuple.ipv4.saddr, t->src + 12, 4);
		__builtin_memcpy(&tuple.ipv4.daddr, t->dst + 12, 4);
		tuple.ipv4.sport = __builtin_bswap16(t->sport);
		tuple.ipv4.dport = __builtin_bswap16(t->dport);
		sk = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, t->src, 16);
		__builtin_memcpy(tuple.ipv6.daddr, t->dst, 16);
		tuple.ipv6.sport = __builtin_bswap16(t->sport);
		tuple.ipv6.dport = __builtin_bswap16(t->dport);
		sk = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	}
	if (!sk)
		return 0;
	found = sk->state;
	full = found == SOCKET_LISTEN || found == SOCKET_NEW_SYN_RECV ? 0 : bpf_sk_fullsock(sk);
	state = full ? sockets.sk_storage_get(full, 0, 0) : 0;
	*accepted = state && (state->flags & FLOW_INBOUND);
	bpf_sk_release(sk);
	return found;
}

/* The connection that a segment without SYN belongs to, as the socket knows it: opened from outside, from here (or by
 * nobody: then the stack answers with a reset), or not to be told yet. */
static inline __attribute__((always_inline)) int is_opened_outside(struct __sk_buff *skb, struct scratch *s)
{
	__u32 accepted = 0, found = socket_of(skb, s, &accepted);

	return found == SOCKET_LISTEN || found == SOCKET_NEW_SYN_RECV || accepted;
}

/* A SYN for a connection that is there already: the stack answers it with a challenge (RFC 5961 4), and whoever can guess
 * four numbers must not begin the connection anew for the gate alone. */
static inline __attribute__((always_inline)) int opens_nothing(struct __sk_buff *skb, struct scratch *s,
							       const struct inbound_flow *known)
{
	__u32 accepted = 0, found = socket_of(skb, s, &accepted);

	if (!found || found == SOCKET_LISTEN || found == SOCKET_TIME_WAIT)
		return 0;
	return found != SOCKET_NEW_SYN_RECV || (known && known->start != s->packet.seq + 1);
}

static inline __attribute__((always_inline)) int judge_inbound(struct run *r, struct __sk_buff *skb)
{
	struct inbound_flow *known = 0;
	struct verdict_entry *entry;
	__u32 zero = 0, *number;
	struct scratch *s;
	struct plan *plan;
	struct packet *p;
	int status, opening;

	r->config = config.lookup(&zero);
	if (!r->config || r->config->mode == MODE_PANIC)
		return OUTCOME_PASS;
	if (skb->mark && skb->mark == r->config->release_mark)
		return released(skb);
	if (!(r->config->present & (PRESENT_INBOUND | PRESENT_DNS)))
		return OUTCOME_PASS;
	number = generation.lookup(&zero);
	s = r->s = scratch.lookup(&zero);
	if (!number || !s)
		return OUTCOME_DROP;
	s->generation = *number;
	s->observe = r->config->mode == MODE_OBSERVE;
	s->inbound = 1;
	s->answer = 0;
	s->is_allowed = 0;
	s->stage = STAGE_CONNECT;
	s->before = 0;
	s->start = 0;
	s->inbound_flow.flags = 0;
	s->kind = kind_of(skb->ifindex);
	p = &s->packet;
	status = read_headers(r);
	s->is_dns = status == PACKET_OK && (r->config->present & PRESENT_DNS) && p->tuple.sport == DNS_PORT;
	plan = plan_of(s->generation);
	/* Or clang joins the comparison inside plan_of() with the one below, and reads through what may be no pointer. */
	BARRIER(plan);
	if (!(r->config->present & PRESENT_INBOUND) || (plan && !plan->inbound))
		return OUTCOME_PASS;
	switch (status) {
	case PACKET_OK:
		break;
	case PACKET_NOT_IP:
	case PACKET_LINK_CONTROL:
		return OUTCOME_PASS;
	case PACKET_FRAGMENT:
		return to_posture(r, POSTURE_FRAGMENT, COUNT_DROPPED_FRAGMENT);
	default:
		return to_posture(r, POSTURE_MALFORMED, COUNT_DROPPED_MALFORMED);
	}
	/* By the peer's address: never-deny names those who administer this host. */
	if ((r->config->present & PRESENT_NEVER_DENY) &&
	    destination(&s->destination, DESTINATION_NEVER_DENY, p->tuple.transport, p->tuple.dport, p->tuple.src)) {
		count(COUNT_PASSED_NEVER_DENY);
		return OUTCOME_PASS;
	}
	s->tcp = p->tuple.transport == PROTO_TCP;
	__builtin_memset(&s->flow, 0, sizeof(s->flow));
	opening = s->tcp && (p->tcp_flags & TCP_FLAG_SYN) && !(p->tcp_flags & TCP_FLAG_ACK);
	if (s->tcp && (p->tcp_flags & TCP_FLAG_RST))
		return OUTCOME_PASS;
	if (!s->tcp && is_icmp_error(s)) {
		count(COUNT_PASSED_REPLY);
		return OUTCOME_PASS;
	}
	inbound_key(s);
	known = inbound_flows.lookup(&s->reversed);
	if (opening) {
		s->start = p->seq + 1;
		if (opens_nothing(skb, s, known)) {
			count(COUNT_PASSED_REPLY);
			return OUTCOME_PASS;
		}
		/* The same ports again: another connection. With the same number, too, where what the one before carried
		 * decided it. */
		if (known && (known->start != s->start || known->by_name))
			known = 0;
	} else if (s->tcp && !known && !is_opened_outside(skb, s)) {
		count(COUNT_PASSED_REPLY);
		return OUTCOME_PASS;
	}
	/* As in judge(): of who is still to be judged by what comes next. */
	if (s->tcp && !p->length && (p->tcp_flags & TCP_FLAG_URG) && known && known->verdict == VERDICT_UNDECIDED &&
	    !(r->config->open & POSTURE_MALFORMED))
		return to_posture(r, POSTURE_MALFORMED, COUNT_DROPPED_MALFORMED);
	if (!s->tcp && known && known->opened_by == OPENED_HERE) {
		if (bpf_ktime_get_ns() < known->expires) {
			known->expires = bpf_ktime_get_ns() + ANSWER_NS;
			count(COUNT_PASSED_REPLY);
			return OUTCOME_PASS;
		}
		known = 0;
	}
	/* Where the stream began is known: only what begins there may be read as its hello. */
	if (s->tcp && (opening || known))
		s->inbound_flow.flags = FLOW_STARTED;
	if (known) {
		s->before = known->verdict_id;
		if (!opening)
			s->start = known->start;
		if (known->generation == s->generation &&
		    (!known->expires || bpf_ktime_get_ns() < known->expires)) {
			if (known->verdict == VERDICT_ALLOW || known->verdict == VERDICT_IGNORE) {
				if (!s->tcp && known->by_name && quic_long_header(r))
					return to_hold(r, STAGE_PAYLOAD, COUNT_HELD_INBOUND);
				/* What decided the stream has been handed to the stack. If the stack had to throw it away (a
				 * checksum, a timestamp), nothing else may take its place. */
				if (s->tcp && p->length && known->judged != known->start &&
				    (__s32)(p->seq - known->judged) < 0) {
					count(s->observe ? COUNT_WOULD_DROP : COUNT_DROPPED_INBOUND);
					return s->observe ? OUTCOME_PASS : OUTCOME_DROP;
				}
				return OUTCOME_PASS;
			}
			if (known->verdict == VERDICT_UNDECIDED) {
				if (s->tcp && !p->length)
					return OUTCOME_PASS;
				return to_hold(r, STAGE_PAYLOAD, COUNT_HELD_INBOUND);
			}
			if (s->observe) {
				count(COUNT_WOULD_DROP);
				return OUTCOME_PASS;
			}
			count(COUNT_DROPPED_INBOUND);
			return OUTCOME_DROP;
		}
	}
	if (r->config->present & PRESENT_SET_DEST) {
		entry = destination(&s->destination, DESTINATION_SET, p->tuple.transport, p->tuple.dport, p->tuple.dst);
		if (entry)
			return to_apply(r, entry, ORIGIN_SET, STAGE_CONNECT);
	}
	/* A stream whose start has gone by, under another policy or before the gate: nothing in it may be read as its
	 * hello any more. */
	if (s->tcp && !opening && (!known || known->verdict != VERDICT_UNDECIDED))
		s->inbound_flow.flags |= FLOW_PAYLOAD_PASSED;
	if (!plan || (s->tcp && !opening))
		return to_hold(r, STAGE_CONNECT, COUNT_HELD_INBOUND);
	entry = connect_verdict(plan, &s->connect, 0, p->tuple.transport, p->tuple.dport, p->tuple.dst, SHAPE_INBOUND);
	if (!entry)
		return to_hold(r, STAGE_CONNECT, COUNT_HELD_INBOUND);
	if (entry->verdict != VERDICT_UNDECIDED)
		return to_apply(r, entry, ORIGIN_DEST, STAGE_CONNECT);
	if (s->tcp) {
		remember_inbound(s, VERDICT_UNDECIDED, FLOW_STARTED);
		if (!p->length)
			return OUTCOME_PASS;
	}
	return to_hold(r, STAGE_PAYLOAD, COUNT_HELD_INBOUND);
}

int gate_ingress(struct __sk_buff *skb)
{
	struct run r = {.skb = skb};

	int outcome = judge_inbound(&r, skb);

	if (r.s && FORGOTTEN(r.s->is_dns))
		tell_dns(&r, 1);
	return carry_out(&r, outcome, HOOK_INGRESS);
}

/* The near end of the hold device, on the way to the engine: any program can have a socket send by any device
 * (SO_BINDTODEVICE, IP_PKTINFO), and a frame that no gate has seen is not to be judged under another one's note. */
int gate_hold(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct config *c = config.lookup(&zero);

	if (!c || skb->mark != c->release_mark)
		return TC_ACT_SHOT;
	skb->mark = 0;
	return TC_ACT_UNSPEC;
}

/* The near end of the hold device: a frame that the engine releases into the stack carries the interface that it came
 * in by as its priority, and the mark by which it is not judged a second time. Where nothing is judged at that
 * interface's ingress, nothing there takes the mark off again: then it goes here. */
int gate_release(struct __sk_buff *skb)
{
	__u32 zero = 0, ifindex = skb->priority;
	struct config *c = config.lookup(&zero);

	if (!c || !c->release_mark || skb->mark != c->release_mark)
		return TC_ACT_SHOT;
	if (!(c->present & (PRESENT_INBOUND | PRESENT_DNS)) && !(kind_of(ifindex) & INTERFACE_INSIDE))
		released(skb);
	return bpf_redirect(ifindex, BPF_F_INGRESS);
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
		entry = connect_verdict(plan, &facts_key, who, transport, port, address, 0);
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
		state->peer_port = 0;
		state->judged = state->start;
	}
	/* A datagram may be the answer to somebody who was let in: only its packet tells. */
	if (c->mode != MODE_ENFORCE || (transport != PROTO_TCP && (c->present & PRESENT_INBOUND)))
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

/* One function for each attach type: connecting and sending differ in a constant. */
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
