/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What sockets and processes do, told through one ring.
 *
 *   observe_sockops   sock_ops         open, close with bytes, duration, retransmits; marks inbound sockets
 *   observe_exec      raw tracepoint   sched_process_exec: the executable of this process is unknown from now on
 *   observe_exit      raw tracepoint   sched_process_exit: and gone
 *
 * The close event comes from sock_ops, not from sock:inet_sock_set_state: that tracepoint has neither byte counts nor
 * the socket's cookie, and no kernel structure is read here (docs/adr/0003-socket-events.md).
 */
#include <uapi/linux/bpf.h>

#include "abi.h"

/* The maps that gate.c declares; the pin makes them the same ones. */
BPF_F_TABLE("array:" SALLYPORT_PINS "/config", __u32, struct config, config, 1, 0);
BPF_F_TABLE("percpu_array:" SALLYPORT_PINS "/counters", __u32, __u64, counters, COUNTERS, 0);
BPF_F_TABLE("lru_hash:" SALLYPORT_PINS "/processes", __u32, struct process, processes, PROCESSES_MAX, 0);
BPF_F_TABLE("sk_storage:" SALLYPORT_PINS "/sockets", int, struct socket_state, sockets, 0, BPF_F_NO_PREALLOC);

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

#define SOCKET_COOKIE(context) (((__u64(*)(void *))BPF_FUNC_get_socket_cookie)(context))
#define STATE_CLOSE 7
#define QUIETLY BPF_RB_NO_WAKEUP

static inline __attribute__((always_inline)) void lost(void)
{
	__u32 what = COUNT_LOST_EVENT;
	__u64 *n = counters.lookup(&what);

	if (n)
		*n += 1;
}

static inline __attribute__((always_inline)) void tuple_of(struct bpf_sock_ops *ctx, struct tuple *tuple)
{
	/* The two branches end in different words because clang 14 merges them otherwise, and the verifier then sees a
	 * context read through a computed pointer ("dereference of modified ctx ptr"). */
	if (ctx->family == 10) {
		__u32 *src = (__u32 *)tuple->src, *dst = (__u32 *)tuple->dst;

		src[0] = ctx->local_ip6[0];
		src[1] = ctx->local_ip6[1];
		src[2] = ctx->local_ip6[2];
		src[3] = ctx->local_ip6[3];
		dst[0] = ctx->remote_ip6[0];
		dst[1] = ctx->remote_ip6[1];
		dst[2] = ctx->remote_ip6[2];
		dst[3] = ctx->remote_ip6[3];
		asm volatile("# IPv6" ::: "memory");
	} else {
		__u32 *src = (__u32 *)tuple->src, *dst = (__u32 *)tuple->dst;

		src[0] = 0;
		src[1] = 0;
		src[2] = __builtin_bswap32(0x0000ffff);
		src[3] = ctx->local_ip4;
		dst[0] = 0;
		dst[1] = 0;
		dst[2] = __builtin_bswap32(0x0000ffff);
		dst[3] = ctx->remote_ip4;
		asm volatile("# IPv4" ::: "memory");
	}
	tuple->sport = ctx->local_port;
	tuple->dport = (__u16)__builtin_bswap32(ctx->remote_port); /* network order, in the high half */
	tuple->transport = 6;
	tuple->pad[0] = 0;
	tuple->pad[1] = 0;
	tuple->pad[2] = 0;
}

static inline __attribute__((always_inline)) void tell(struct bpf_sock_ops *ctx, struct socket_state *state,
						       __u32 type, __u32 old_state)
{
	struct socket_event *event = events.ringbuf_reserve(sizeof(struct socket_event));

	if (!event) {
		lost();
		return;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->header.time = bpf_ktime_get_ns();
	event->header.type = type;
	tuple_of(ctx, &event->tuple);
	event->old_state = old_state;
	event->cookie = SOCKET_COOKIE(ctx);
	event->bytes_acked = ctx->bytes_acked;
	event->bytes_received = ctx->bytes_received;
	event->segments_out = ctx->segs_out;
	event->segments_in = ctx->segs_in;
	event->retransmits = ctx->total_retrans;
	event->srtt = ctx->srtt_us >> 3; /* kept by the kernel in eighths */
	if (state) {
		__builtin_memcpy(&event->identity, &state->identity, sizeof(event->identity));
		event->opened = state->opened;
		event->flags = state->flags;
	}
	events.ringbuf_submit(event, QUIETLY);
}

int observe_sockops(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct socket_state *state = 0;
	struct config *c;
	__u32 zero = 0, op = ctx->op;

	/* A connection that this host opens makes nine calls: for time-outs, windows and ECN, which nobody here has a word
	 * on, and for each of its states, of which the last one counts. */
	if (op == BPF_SOCK_OPS_STATE_CB) {
		if (ctx->args[1] != STATE_CLOSE)
			return 1;
	} else if (op != BPF_SOCK_OPS_TCP_CONNECT_CB && op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) {
		return 1;
	}
	c = config.lookup(&zero);
	if (!c || c->mode == MODE_PANIC || !sk)
		return 1;
	switch (op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		state = sockets.sk_storage_get(sk, 0, 0);
		if (state)
			state->opened = bpf_ktime_get_ns();
		bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
		tell(ctx, state, EVENT_OPEN, 0);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		state = sockets.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
		/* A peer may answer an opening with one of its own (RFC 9293 3.5): the socket is still the one that connected. */
		if (state && state->connections)
			break;
		if (state) {
			struct tuple tuple;

			tuple_of(ctx, &tuple);
			state->opened = bpf_ktime_get_ns();
			state->flags = FLOW_INBOUND;
			state->peer_port = tuple.dport;
			__builtin_memcpy(state->peer, tuple.dst, 16);
		}
		bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
		tell(ctx, state, EVENT_OPEN, 0);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		state = sockets.sk_storage_get(sk, 0, 0);
		tell(ctx, state, EVENT_CLOSE, ctx->args[0]);
		break;
	}
	return 1;
}

static inline __attribute__((always_inline)) void tell_process(__u32 type, __u64 now)
{
	struct process_event *event = events.ringbuf_reserve(sizeof(struct process_event));
	__u64 id = bpf_get_current_pid_tgid();

	if (!event) {
		lost();
		return;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->header.time = now;
	event->header.type = type;
	event->identity.tgid = id >> 32;
	event->identity.tid = (__u32)id;
	event->identity.uid = (__u32)bpf_get_current_uid_gid();
	event->identity.cgroup = bpf_get_current_cgroup_id();
	event->identity.exec_stamp = now;
	events.ringbuf_submit(event, type == EVENT_EXEC ? BPF_RB_FORCE_WAKEUP : QUIETLY);
}

/* The image has been replaced: what the process was says nothing any more, and nothing may stand on it. */
int observe_exec(struct bpf_raw_tracepoint_args *ctx)
{
	struct process unknown = {.exec_stamp = bpf_ktime_get_ns()};
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;

	processes.update(&tgid, &unknown);
	tell_process(EVENT_EXEC, unknown.exec_stamp);
	return 0;
}

/* At the end of any thread, because the last one to go need not be the first one to come: a process id that is used
 * again must not find the entry of the process before. A process that lives on is looked up again. */
int observe_exit(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u32 tgid = id >> 32;

	processes.delete(&tgid);
	if (tgid == (__u32)id)
		tell_process(EVENT_EXIT, bpf_ktime_get_ns());
	return 0;
}
