/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who sends: every frame that comes in by a guarded interface, judged by its source address before the stack sees it.
 *
 *   gate_source          XDP            drop by source address
 */
#include <uapi/linux/bpf.h>

#include "abi.h"

/* The maps that gate.c declares; the pin makes them the same ones. */
BPF_F_TABLE("array:" SALLYPORT_PINS "/config", __u32, struct config, config, 1, 0);
BPF_F_TABLE("array:" SALLYPORT_PINS "/generation", __u32, __u32, generation, 1, 0);
BPF_F_TABLE("percpu_array:" SALLYPORT_PINS "/counters", __u32, __u64, counters, COUNTERS, 0);

BPF_F_TABLE("lpm_trie:" SALLYPORT_PINS "/source_verdicts", struct source_key, struct verdict_entry, source_verdicts,
	    SOURCES_MAX, BPF_F_NO_PREALLOC);

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

int gate_source(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 zero = 0, *number, type;
	struct verdict_entry *entry = 0;
	struct source_key key = {.prefixlen = 32 + 128};
	struct config *c = config.lookup(&zero);

	if (!c || c->mode == MODE_PANIC || !(c->present & (PRESENT_SOURCE | PRESENT_SET_SOURCE)))
		return XDP_PASS;
	if (data + 14 > end)
		return XDP_PASS;
	type = ((__u32)data[12] << 8) | data[13];
	data += 14;
#pragma unroll
	for (int i = 0; i < 2; i++) {
		if (type != 0x8100 && type != 0x88a8)
			break;
		if (data + 4 > end)
			return XDP_PASS;
		type = ((__u32)data[2] << 8) | data[3];
		data += 4;
	}
	if (type == 0x0800) {
		if (data + 20 > end)
			return XDP_PASS;
		key.address[10] = 0xff;
		key.address[11] = 0xff;
		__builtin_memcpy(key.address + 12, data + 12, 4);
	} else if (type == 0x86dd) {
		if (data + 40 > end)
			return XDP_PASS;
		__builtin_memcpy(key.address, data + 8, 16);
	} else {
		return XDP_PASS;
	}
	if (c->present & PRESENT_SET_SOURCE)
		entry = source_verdicts.lookup(&key);
	if (!standing(entry)) {
		number = generation.lookup(&zero);
		if (!number)
			return XDP_PASS;
		key.generation = *number;
		entry = source_verdicts.lookup(&key);
		if (!standing(entry))
			return XDP_PASS;
	}
	if (entry->verdict != VERDICT_DENY && entry->verdict != VERDICT_REJECT)
		return XDP_PASS;
	if (c->mode == MODE_OBSERVE) {
		count(COUNT_WOULD_DROP);
		return XDP_PASS;
	}
	count(COUNT_DROPPED_SOURCE);
	return XDP_DROP;
}
