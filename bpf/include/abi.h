/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The contract between the kernel programs and the engine: every map key, map value and event.
 *
 * engine/abi mirrors it; tests/host_c compares every size and offset. Rules: explicit enum numbers, named pads that
 * are always zero (they are part of hash keys), natural alignment, no bit fields. Addresses are 16 bytes, IPv4 as
 * ::ffff:a.b.c.d; ports and ids are in host order; times are CLOCK_MONOTONIC nanoseconds (bpf_ktime_get_ns), 0 = never.
 * A change here raises SALLYPORT_ABI, which stands in the pin directory's name: an engine never opens maps of
 * another layout.
 */
#ifndef SALLYPORT_ABI_H
#define SALLYPORT_ABI_H

#define SALLYPORT_ABI 3

/* Names up to NAME_MAX_KERNEL bytes are decided in the kernel; longer ones always go to the engine. 199 and its
 * terminator keep a trie node in the 256-byte slab: half the memory of the longest key a trie takes. */
#define NAME_KEY_BYTES 200
#define NAME_MAX_KERNEL 199
#define SHAPES_MAX 8
#define PLANS 4

/* Bounds of the maps, each to be had otherwise by -D (the configuration's [maps]); `status` shows how full each is. */
#ifndef DESTINATIONS_MAX
#define DESTINATIONS_MAX 262144
#endif
#ifndef SOURCES_MAX
#define SOURCES_MAX 1048576
#endif
#ifndef STRATEGIES_MAX
#define STRATEGIES_MAX 16384
#endif
#ifndef CONNECT_VERDICTS_MAX
#define CONNECT_VERDICTS_MAX 262144
#endif
#ifndef CLASSES_MAX
#define CLASSES_MAX 65536
#endif
#ifndef NAME_VERDICTS_MAX
#define NAME_VERDICTS_MAX 524288
#endif
#ifndef FLOW_VERDICTS_MAX
#define FLOW_VERDICTS_MAX 65536
#endif
#ifndef INBOUND_FLOWS_MAX
#define INBOUND_FLOWS_MAX 65536
#endif
#ifndef HELD_MAX
#define HELD_MAX 16384
#endif
#ifndef HELLOS_MAX
#define HELLOS_MAX 4096 /* a power of two */
#endif
#ifndef PROCESSES_MAX
#define PROCESSES_MAX 32768
#endif
#ifndef INTERFACES_MAX
#define INTERFACES_MAX 256
#endif
#ifndef EVENT_BYTES
#define EVENT_BYTES 4194304
#endif

enum mode {
	MODE_OBSERVE = 0, /* nothing is held or dropped: copies are judged */
	MODE_ENFORCE = 1,
	MODE_PANIC = 2, /* every program passes everything at once */
};

enum verdict {
	VERDICT_NONE = 0,
	VERDICT_ALLOW = 1,
	VERDICT_DENY = 2,
	VERDICT_REJECT = 3,
	VERDICT_UNDECIDED = 4, /* judged at connect, open until the first payload */
	VERDICT_IGNORE = 5,
	VERDICT_OBSERVE = 6,
	VERDICT_ENFORCE = 7,
};

/* Who said it: the precedence of the maps, strongest first. */
enum origin {
	ORIGIN_NONE = 0,
	ORIGIN_NEVER_DENY = 1,
	ORIGIN_SET = 2, /* `verdict set`: a person's word */
	ORIGIN_STRATEGY = 3,
	ORIGIN_FLOW = 4,
	ORIGIN_DEST = 5,
	ORIGIN_NAME = 6,
	ORIGIN_SOURCE = 7,
	ORIGIN_POSTURE = 8,
};

/* First byte of a destinations key. */
enum destination_class {
	DESTINATION_NEVER_DENY = 1,
	DESTINATION_SET = 2,
	DESTINATION_STRATEGY = 3,
};

/* Bits of config.present: which of a person's maps hold anything, so that an empty one costs no look-up. */
enum present {
	PRESENT_NEVER_DENY = 1,
	PRESENT_SET_DEST = 2,
	PRESENT_SET_NAME = 4,
	PRESENT_STRATEGY_DEST = 8,
	PRESENT_STRATEGY_ID = 16,
	PRESENT_SET_SOURCE = 32,
	PRESENT_SOURCE = 64,
	PRESENT_INBOUND = 128, /* a policy judges what comes in: gate_ingress has work */
	PRESENT_DNS = 256,     /* a policy reads dest_names: DNS messages are told */
	PRESENT_INSIDE = 512,  /* there are guarded interfaces behind this host (containers, machines) */
};

/* Bits of config.open: conditions whose posture is "open" (pass); a bit not set means closed (drop). */
enum posture {
	POSTURE_ENGINE_ABSENT = 1,
	POSTURE_HOLD_FULL = 2,
	POSTURE_MAP_FULL = 4,
	POSTURE_MALFORMED = 8,
	POSTURE_FRAGMENT = 16,
	POSTURE_UNKNOWN_INTERFACE = 32,
};

/* Facts that a key can hold; a shape is a set of them. */
enum shape {
	SHAPE_DEST = 1,
	SHAPE_EXE = 2,
	SHAPE_CGROUP = 4,
	SHAPE_USER = 8,
	SHAPE_INBOUND = 128, /* no fact: an entry for what comes in, where dest is this host */
};

/* Value of the map `interfaces`: bits. */
enum interface_kind {
	INTERFACE_ETHERNET = 1, /* frames begin with a link header */
	INTERFACE_INSIDE = 2,	/* what comes in by it leaves somebody behind this host: judged like egress, there */
};

/* Where a held frame was taken from, so where it goes on when it is released. */
enum hook {
	HOOK_EGRESS = 0,  /* out of the interface */
	HOOK_INGRESS = 1, /* into the stack, as if it had just come in by the interface */
};

enum strategy_kind {
	STRATEGY_EXE = 1,
	STRATEGY_CGROUP = 2,
	STRATEGY_USER = 3,
};

/* Classes of the name trie; the engine hands out the rest, never one number twice in a run. */
enum name_class {
	NAME_CLASS_SET = 1,
	NAME_CLASS_FIRST_FREE = 16,
};

enum stage {
	STAGE_CONNECT = 0,
	STAGE_PAYLOAD = 1,
	STAGE_REJECT = 2, /* decided: the engine is to tell the sender (RST, ICMP), nothing else */
	STAGE_AGAIN = 3,  /* decided: the engine is to compare what is sent again with what was judged, nothing else */
};

/* Bits of socket_state.flags and held.flags. */
enum flow_flag {
	FLOW_PAYLOAD_PASSED = 1, /* the stream's start is gone: no later payload may be read as its hello */
	FLOW_HOLDING = 2,	 /* the stream's start is held: what follows must queue behind it */
	FLOW_OBSERVE = 4,
	FLOW_INBOUND = 8,
	FLOW_CLONED = 16, /* the held frame is a copy, the original has passed */
	FLOW_NO_STORAGE = 32,
	FLOW_COPIED = 64, /* payload has passed while copies of it were judged */
	FLOW_STARTED = 128, /* the SYN went by: `start` is the stream's first sequence number */
};

/* Every packet that a program ends or waves through without asking has one of these, counted per CPU. */
enum counter {
	COUNT_PASSED_NOT_IP = 0,
	COUNT_PASSED_LINK_CONTROL = 1,
	COUNT_PASSED_FRAGMENT = 2,
	COUNT_PASSED_NEVER_DENY = 3,
	COUNT_PASSED_IGNORED = 4,
	COUNT_PASSED_INBOUND = 5,
	COUNT_PASSED_POSTURE = 6,
	COUNT_PASSED_PANIC = 7,
	COUNT_HELD_CONNECT = 8,
	COUNT_HELD_PAYLOAD = 9,
	COUNT_HELD_LATE = 10,
	COUNT_HELD_DATAGRAM = 11,
	COUNT_HIT_FLOW = 12,
	COUNT_HIT_DEST = 13,
	COUNT_HIT_NAME = 14,
	COUNT_HIT_SET = 15,
	COUNT_DROPPED_FLOW = 16,
	COUNT_DROPPED_DEST = 17,
	COUNT_DROPPED_NAME = 18,
	COUNT_DROPPED_SET = 19,
	COUNT_DROPPED_SOURCE = 20,
	COUNT_DROPPED_MALFORMED = 21,
	COUNT_DROPPED_FRAGMENT = 22,
	COUNT_DROPPED_ENGINE_ABSENT = 23,
	COUNT_DROPPED_HOLD_FULL = 24,
	COUNT_DROPPED_MAP_FULL = 25,
	COUNT_REFUSED_CONNECT = 26,
	COUNT_REFUSED_STORAGE = 27,
	COUNT_WOULD_DROP = 28,
	COUNT_LOST_EVENT = 29,
	COUNT_LOST_FLOW_VERDICT = 30,
	COUNT_LOST_PROCESS = 31,
	COUNT_PASSED_REPLY = 32,     /* came in as an answer to what left */
	COUNT_PASSED_FORWARDED = 33, /* judged already where it came in */
	COUNT_PASSED_RELEASED = 34,
	COUNT_HELD_INBOUND = 35,
	COUNT_HELD_REJECT = 36,
	COUNT_DROPPED_INBOUND = 37,
	COUNT_DROPPED_INTERFACE = 38,
	COUNT_LOST_INBOUND_FLOW = 39,
	COUNT_HELD_AGAIN = 40,
	COUNTERS = 41,
};

struct config {
	__u32 mode;
	__u32 hold_ifindex;
	__u32 present;
	__u32 open;
	__u32 hold_limit;    /* frames redirected and not yet taken by the engine */
	__u32 release_mark;  /* a secret number: marks a frame that goes back into the stack */
	__u64 heartbeat_max; /* ns without a heartbeat after which the engine counts as absent */
	__u32 orders;	     /* another number each time a person said something: what sockets remember is asked anew */
	__u32 pad;
};

/* Which look-ups a generation needs. Written before the generation number, read once per program run. */
struct plan {
	__u32 generation;
	__u8 connect_shapes_n;
	__u8 name_shapes_n;
	__u8 inbound; /* 1: this policy judges what comes in */
	__u8 pad;
	__u8 connect_shapes[SHAPES_MAX];
	__u8 name_shapes[SHAPES_MAX];
};

struct process {
	__u64 exec_stamp; /* when the image was replaced last, as the kernel saw it */
	__u32 exe;	  /* interned executable id, 0 until the engine has looked it up */
	__u32 pad;
};

/* Who opened the socket, written in the process's own context. */
struct identity {
	__u64 cgroup;
	__u64 exec_stamp;
	__u32 tgid;
	__u32 tid;
	__u32 uid;
	__u32 exe;
};

struct socket_state {
	struct identity identity;
	__u64 opened;
	__u64 expires;
	__u32 generation;
	__u32 verdict_id;
	__u8 verdict;
	__u8 stage;
	__u8 flags;
	__u8 origin;
	__u32 start;	   /* sequence number of the stream's first byte */
	__u32 connections; /* times this socket has connected: its cookie is the same each time */
	/* Of TCP: whose packets the verdict is about, as they leave. A program may make its socket send elsewhere later (a
	 * routing header, a source route), and a container rewrite what its socket sends. Zero: not known yet; of an
	 * accepted socket only the peer is, because its own port may be translated. */
	__u16 peer_port;
	__u16 local_port;
	__u8 peer[16];
	__u32 orders; /* config.orders of the verdict */
	__u32 judged; /* sequence number behind what was read of a stream that was decided by it; else its start */
};

struct verdict_entry {
	__u64 expires;
	__u64 hits;
	__u32 id; /* the engine's number for this entry: what an event or a held packet refers to */
	__u8 verdict;
	__u8 by_name; /* decided from a name: a new QUIC Initial on the flow is judged again */
	__u8 pad[2];
};

struct flow_verdict {
	struct verdict_entry entry;
	__u32 judged; /* sequence number behind what was read of the flow's stream */
	__u8 read;    /* 1: the stream was read, and `judged` counts */
	__u8 pad[3];
};

/* Facts outside the shape are zero. Also the key of `classes`. */
struct connect_key {
	__u32 generation;
	__u8 shape;
	__u8 transport; /* IPPROTO_* */
	__u16 port;
	__u8 address[16];
	__u64 cgroup;
	__u32 exe;
	__u32 uid;
};

struct tuple {
	__u8 src[16];
	__u8 dst[16];
	__u16 sport;
	__u16 dport;
	__u8 transport;
	__u8 pad[3];
};

struct flow_key {
	struct tuple tuple;
	__u32 generation;
	/* What tells flows of one tuple and socket apart. TCP: which connection of the socket it is (connect() with
	 * AF_UNSPEC ends one, and the next may use the same port). Datagrams: the executable, because a shared socket
	 * must not share its verdicts between programs. */
	__u32 part;
	__u64 cookie;
};

struct held {
	struct identity identity;
	__u64 cookie;
	__u64 time;
	__u64 number; /* of the frame: how many had been redirected before it */
	__u32 ifindex;
	__u32 generation;
	__u32 verdict_id; /* of the generation before, 0 if none: the engine knows the name it stood for */
	__u32 part;	  /* flow_key.part to answer under */
	__u32 start;	  /* with FLOW_STARTED: sequence number of the stream's first byte */
	__u8 stage;
	__u8 flags;
	__u8 hook;
	__u8 answer; /* of a flow that was opened from outside: what goes the other way, so the tuple is not the flow's */
	__u32 judged; /* socket_state.judged */
	__u32 pad;
};

/* The first payload of a TCP stream that the gate has judged itself, kept at its socket's cookie modulo HELLOS_MAX until
 * another one takes its place: what TCP sends again must be the same. */
#define HELLO_KEPT 4096

struct kept_hello {
	struct tuple tuple;
	__u32 start; /* sequence number of bytes[0] */
	__u32 length;
	__u8 bytes[HELLO_KEPT];
};

/*
 * What is known of a flow between this host and a peer, by the tuple of the packets that come in. A flow that was opened
 * from outside has its verdict here, as socket_state has those that were opened here. For datagrams, also that
 * they have been sent from here: what comes in is then an answer. ICMP has no ports: dport says what it is in this map.
 */
enum icmp_kind {
	ICMP_REQUEST_IN = 0, /* comes in, and what goes out in answer to it */
	ICMP_ANSWER_IN = 1,  /* comes in as an answer, and the request that went out */
	ICMP_OTHER = 2,	     /* goes out, and neither asks nor answers: no flow of anything that comes in */
};

enum opened_by {
	OPENED_OUTSIDE = 1,
	OPENED_HERE = 2,
};

struct inbound_flow {
	__u64 expires; /* OPENED_HERE: the answer is no answer any more */
	__u32 generation;
	__u32 verdict_id;
	__u32 start; /* sequence number of the stream's first byte */
	__u8 verdict;
	__u8 flags;
	__u8 opened_by;
	__u8 by_name; /* decided from what the flow carried: what may begin a QUIC connection is judged again */
	__u32 judged; /* sequence number behind what was read of a stream that was decided by it; else its start */
	__u32 pad;
};

/*
 * Keys of tries. A node's value begins right behind the key's data, so the data behind prefixlen is a multiple of eight
 * bytes: a value that is aligned to four only has its counter across two cache lines at times, and a locked add there
 * stops every CPU's memory bus: 0.5 ms a packet, handed to whoever sends it. The pads lie beyond every prefix.
 */
#define TRIE_KEY_IS_ALIGNED(type) _Static_assert((sizeof(struct type) - 4) % 8 == 0, #type)

struct destination_key {
	__u32 prefixlen; /* bits after this field: 32 + address bits */
	__u8 class;
	__u8 transport; /* 0: any */
	__u16 port;	/* 0: any */
	__u8 address[16];
	__u32 pad;
};
TRIE_KEY_IS_ALIGNED(destination_key);

struct source_key {
	__u32 prefixlen;
	__u32 generation; /* 0: a person's word */
	__u8 address[16];
	__u32 pad;
};
TRIE_KEY_IS_ALIGNED(source_key);

struct name_key {
	__u32 prefixlen;
	__u32 class;
	__u8 name[NAME_KEY_BYTES]; /* lower case, reversed; an exact name ends with NUL, a wildcard with '.' */
	__u32 pad;
};
TRIE_KEY_IS_ALIGNED(name_key);

struct strategy_key {
	__u32 kind;
	__u32 pad;
	__u64 value;
};

enum event_type {
	EVENT_OPEN = 1,
	EVENT_CLOSE = 3,
	EVENT_EXEC = 4,
	EVENT_EXIT = 5,
	EVENT_VERDICT = 6,
	EVENT_VERDICT_NAME = 7,
	EVENT_REFUSED = 8,
	EVENT_DNS = 9,
};

/* An event wakes the engine at once only where something waits for it: a new image, a socket to end. The others are
 * read when the engine looks (EVENT_LOOK in engine/runtime/supervisor.py): a wake-up for each would cost the very
 * connections that the kernel decides alone. */
struct event_header {
	__u64 time;
	__u32 type;
	__u32 pad;
};

/* EVENT_EXEC, EVENT_EXIT */
struct process_event {
	struct event_header header;
	struct identity identity;
};

/* EVENT_OPEN, EVENT_CLOSE: TCP sockets. Byte counts are of sequence space: the SYN and, once
 * acknowledged, the FIN count one each; old_state tells the engine which. */
struct socket_event {
	struct event_header header;
	struct identity identity;
	struct tuple tuple;
	__u32 old_state;
	__u32 srtt; /* microseconds */
	__u64 cookie;
	__u64 opened;
	__u64 bytes_acked;
	__u64 bytes_received;
	__u32 segments_out;
	__u32 segments_in;
	__u32 retransmits;
	__u8 flags;
	__u8 pad[3];
};

/* EVENT_VERDICT, EVENT_REFUSED: a standing verdict met a flow for the first time. */
struct verdict_event {
	struct event_header header;
	struct identity identity;
	struct tuple tuple;
	__u32 ifindex;
	__u32 generation;
	__u64 cookie;
	__u32 verdict_id;
	__u8 verdict;
	__u8 origin;
	__u8 stage;
	__u8 flags;
	__u32 part; /* flow_key.part */
	__u32 pad;
};

/* EVENT_VERDICT_NAME: the same with the name that was looked up, lower case and reversed as in name_key. */
struct verdict_name_event {
	struct verdict_event verdict;
	__u32 name_length;
	__u8 name[NAME_KEY_BYTES];
	__u32 pad;
};

/* EVENT_DNS: a DNS message that passed by a guarded interface, as much of it as DNS_BYTES. Sent as long as it is. */
#define DNS_BYTES 4096

struct dns_event {
	struct event_header header;
	struct tuple tuple;
	__u32 seq; /* TCP: of the first byte in payload */
	__u32 length; /* bytes in payload */
	__u8 ingress;
	__u8 tcp_flags;
	__u8 truncated;
	__u8 pad;
	__u32 ifindex; /* where it left or came in: an answer is believed only where its question went */
	__u8 payload[DNS_BYTES];
};

#endif
