/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The contract of source.c: what the engine and the program that judges by source address share beyond abi.h.
 *
 * engine/abi/source.py mirrors it, under the rules of abi.h: explicit numbers, named pads, addresses of 16 bytes,
 * times in CLOCK_MONOTONIC nanoseconds.
 */
#ifndef SALLYPORT_SOURCE_ABI_H
#define SALLYPORT_SOURCE_ABI_H

#include "abi.h"

/* Prefix lengths of each family that have their place in the hash; every other length is in the trie. */
#define SOURCE_LENGTHS 3
#define SOURCE_FAMILIES 2
#define SOURCE_PORT_BITS 1024

/* Sources whose SYNs are counted and sources that are blocked. Tables that evict are allocated whole: 4 MiB and 1.5. */
#ifndef TRACKED_MAX
#define TRACKED_MAX 16384
#endif
#ifndef BLOCKED_MAX
#define BLOCKED_MAX 16384
#endif

enum source_family {
	SOURCE_IPV4 = 0,
	SOURCE_IPV6 = 1,
};

enum source_cause {
	SOURCE_SCAN = 1,
	SOURCE_FLOOD = 2,
};

enum source_counter {
	SOURCE_COUNT_FRAMES = 0,	   /* IP frames seen */
	SOURCE_COUNT_UNREADABLE = 1,	   /* headers cut short or contradicting: judged by source as far as there is one */
	SOURCE_COUNT_SPARED = 2,	   /* would have been dropped, but never-deny says no */
	SOURCE_COUNT_DROPPED_BLOCKED = 3,
	SOURCE_COUNT_WOULD_BLOCK = 4,	   /* frames of a source that is blocked in observe mode only */
	SOURCE_COUNT_BLOCKS = 5,	   /* times a source was blocked */
	SOURCE_COUNT_LOST_BLOCK = 6,	   /* a block that found no room */
	SOURCE_COUNT_LOST_TRACK = 7,	   /* a SYN whose source found no room in the tracker */
	SOURCE_COUNTERS = 8,
};

/* Beside those of abi.h. */
enum source_event_type {
	EVENT_SOURCE_BLOCKED = 32,
};

/* One prefix length that is kept in the hash: the mask that makes a key of an address. */
struct source_length {
	__u64 mask[2]; /* in the byte order of the address */
	__u32 bits;    /* of 128; 0: none, and none behind it */
	__u32 pad;
};

/* 0 in `ports` or `syns`: no such limit. */
struct source_limits {
	__u32 ports;
	__u32 syns;
	__u64 scan_ns;
	__u64 scan_block_ns;
	__u64 flood_ns;
	__u64 flood_block_ns;
};

/* What a generation says of sources. Written before the generation number, read once per program run. */
struct source_plan {
	__u32 generation;
	__u32 longest[SOURCE_FAMILIES]; /* longest prefix in the trie, plus one; 0: the trie has none of this family */
	__u32 pad;
	struct source_length lengths[SOURCE_FAMILIES * SOURCE_LENGTHS]; /* of each family, longest first */
	struct source_limits limits;
};

/* A policy's word. A person's is a verdict_entry in source_verdicts. */
struct source_entry {
	__u8 verdict;
	__u8 bits; /* of the prefix, of 128 */
	__u8 pad[6];
};

struct prefix_key {
	__u32 generation;
	__u32 bits;
	__u8 address[16];
};

struct source_address {
	__u8 bytes[16];
};

/* What a source has asked for lately. Two CPUs may lose a count to each other, and a limit then bites a packet later. */
struct tracked {
	__u64 scan_since;
	__u64 flood_since;
	__u32 ports; /* bits set below: never more than the distinct ports */
	__u32 syns;
	__u32 unanswered; /* SYNs of the flood window less the acknowledgements that came since, never below 0 */
	__u32 salt;	  /* so that nobody can choose ports that share a bit */
	__u64 port_bits[SOURCE_PORT_BITS / 64];
};

struct blocked {
	__u64 since;
	__u64 expires;
	__u64 dropped;
	__u32 syns;
	__u32 ports;
	__u32 unanswered;
	__u8 cause;
	__u8 observed; /* placed while observing: nothing was dropped for it */
	__u8 pad[2];
};

struct tcp_flag_counts {
	__u64 flags[8]; /* FIN SYN RST PSH ACK URG ECE CWR */
};

struct source_event {
	struct event_header header;
	__u8 address[16];
	struct blocked blocked;
	__u32 ifindex;
	__u32 generation;
};

#endif
