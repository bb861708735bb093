"""Loads bpf/gate.c with its seams to the kernel's sockets under a test's control.

    python -m tests.support.seam SOURCE MAPS PINS

BPF_PROG_TEST_RUN gives every run a fresh socket: without storage, and with a cookie that nobody knows beforehand. It
has no way to say that there is no socket, and, before Linux 5.12, none to say by which interface a packet came. So of
the programs that are judged here a few expressions differ from what is shipped, and not a word else: whether there is
a socket, how its storage begins (or that it is absent), its cookie, the interface that the packet came in by, and what
the socket table says of a segment that comes in. What the storage holds in the end is copied to `seam_after`. A gate.c
in which these expressions are not to be found is refused.

Both directions are loaded from one text: they share every map, the scratch too.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from engine.kernel import headers, libbpf
from engine.kernel.programs import SCHED_CLS, SOURCES

FIRST = "static inline __attribute__((always_inline)) void count(__u32 what)\n"

SEAM = """
struct seam {
	__u64 cookie;
	__u32 socket;  /* 0: the packet has none */
	__u32 stored;  /* the socket has storage */
	__u32 came_by; /* interface */
	__u32 found;   /* state of the socket that a segment comes in for, 0 for none */
	__u32 accepted; /* its connection was opened from outside */
	__u32 pad;
};

BPF_F_TABLE("array:" SALLYPORT_PINS "/seam_before", __u32, struct socket_state, seam_before, 1, 0);
BPF_F_TABLE("array:" SALLYPORT_PINS "/seam_after", __u32, struct socket_state, seam_after, 1, 0);
BPF_F_TABLE("array:" SALLYPORT_PINS "/seam_run", __u32, struct seam, seam_run, 1, 0);

static inline __attribute__((always_inline)) struct seam *seam(void)
{
	__u32 zero = 0;

	return seam_run.lookup(&zero);
}

static inline __attribute__((always_inline)) struct socket_state *seam_storage(struct bpf_sock *sk)
{
	__u32 zero = 0;
	struct socket_state *before = seam_before.lookup(&zero);
	struct seam *run = seam();

	if (!before || !run || !run->stored)
		return 0;
	return sockets.sk_storage_get(sk, before, BPF_SK_STORAGE_GET_F_CREATE);
}

static inline __attribute__((always_inline)) __u64 seam_cookie(void)
{
	struct seam *run = seam();

	return run ? run->cookie : 0;
}

static inline __attribute__((always_inline)) __u32 seam_socket(void)
{
	struct seam *run = seam();

	return run ? run->socket : 0;
}

static inline __attribute__((always_inline)) __u32 seam_came_by(void)
{
	struct seam *run = seam();

	return run ? run->came_by : 0;
}

static inline __attribute__((always_inline)) __u32 seam_socket_of(__u32 *accepted)
{
	struct seam *run = seam();

	*accepted = run && run->accepted;
	return run ? run->found : 0;
}

"""

SEAMS = (
    (
        "#define SOCKET_COOKIE(context) (((__u64(*)(void *))BPF_FUNC_get_socket_cookie)(context))",
        "#define SOCKET_COOKIE(context) seam_cookie()",
    ),
    (FIRST, SEAM + FIRST),
    ("sockets.sk_storage_get(sk, 0, 0)", "seam_storage(sk)"),
    ("struct bpf_sock *sk = skb->sk;", "struct bpf_sock *sk = seam_socket() ? skb->sk : 0;"),
    (
        "int gate_egress(struct __sk_buff *skb)\n{",
        "static inline __attribute__((always_inline)) int judged(struct __sk_buff *skb)\n{",
    ),
)
"""Each is there exactly once."""
EVERYWHERE = (
    ("skb->ingress_ifindex", "seam_came_by()"),
    ("= socket_of(skb, s, &accepted)", "= seam_socket_of(&accepted)"),
)
"""Wherever they stand."""

TAIL = """
int gate_egress(struct __sk_buff *skb)
{
	int action = judged(skb);
	struct bpf_sock *sk = skb->sk;
	struct socket_state *state, *after;
	__u32 zero = 0;

	if (!sk)
		return action;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return action;
	state = seam_storage(sk);
	after = seam_after.lookup(&zero);
	if (state && after)
		__builtin_memcpy(after, state, sizeof(*after));
	return action;
}
"""


def seamed(text: str) -> str:
    """Return the text of a gate.c with the seams in it."""
    for old, new in SEAMS:
        if text.count(old) != 1:
            raise SystemExit(f"gate.c has not exactly one: {old}")
        text = text.replace(old, new)
    for old, new in EVERYWHERE:
        if old not in text:
            raise SystemExit(f"gate.c has no: {old}")
        text = text.replace(old, new)
    return text + TAIL


def main() -> None:
    source, maps, pins = (Path(word) for word in sys.argv[1:])
    tree = headers.find()
    if tree is not None:
        os.environ["BCC_KERNEL_SOURCE"] = str(tree)
    from bcc import BPF

    flags = [f"-I{SOURCES / 'include'}", "-DSALLYPORT_KERNEL", f'-DSALLYPORT_PINS="{maps}"']
    module = BPF(text=seamed(source.read_text()), cflags=flags)
    for name in ("gate_egress", "gate_ingress"):
        libbpf.obj_pin(module.load_func(name, SCHED_CLS).fd, pins / f"seamed_{name}")


if __name__ == "__main__":
    main()
