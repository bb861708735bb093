"""Loads bpf/gate.c with its two seams to the kernel's sockets under a test's control.

    python -m tests.support.seam MAPS PIN

BPF_PROG_TEST_RUN gives every run a fresh socket: without storage, and with a cookie that nobody knows beforehand. So of
the program that is judged here two expressions differ from what is shipped, and not a word else: socket storage begins
as the map `seam_before` says (or is absent), and the cookie is the one in `seam_cookie`. What the storage holds in the
end is copied to `seam_after`. A gate.c in which these expressions are not to be found is refused.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from engine.kernel import headers, libbpf
from engine.kernel.programs import SCHED_CLS, SOURCES

STORAGE = "sockets.sk_storage_get(sk, 0, 0)"
COOKIE = "#define SOCKET_COOKIE(context) (((__u64(*)(void *))BPF_FUNC_get_socket_cookie)(context))"
PROGRAM = "int gate_egress(struct __sk_buff *skb)\n{"
FIRST = "static inline __attribute__((always_inline)) void count(__u32 what)\n"

SEAM = """
BPF_F_TABLE("array:" SALLYPORT_PINS "/seam_before", __u32, struct socket_state, seam_before, 1, 0);
BPF_F_TABLE("array:" SALLYPORT_PINS "/seam_after", __u32, struct socket_state, seam_after, 1, 0);
BPF_F_TABLE("array:" SALLYPORT_PINS "/seam_cookie", __u32, __u64, seam_cookie, 1, 0);

static inline __attribute__((always_inline)) struct socket_state *seam_storage(struct bpf_sock *sk)
{
	__u32 zero = 0;
	struct socket_state *before = seam_before.lookup(&zero);

	/* `pad` says whether there is storage at all: a byte of the record that means nothing to the gate. */
	if (!before || !before->pad)
		return 0;
	return sockets.sk_storage_get(sk, before, BPF_SK_STORAGE_GET_F_CREATE);
}

static inline __attribute__((always_inline)) __u64 seam_cookie_of(void)
{
	__u32 zero = 0;
	__u64 *cookie = seam_cookie.lookup(&zero);

	return cookie ? *cookie : 0;
}

"""

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


def source() -> str:
    text = (SOURCES / "gate.c").read_text()
    for old, new in (
        (COOKIE, "#define SOCKET_COOKIE(context) seam_cookie_of()"),
        (FIRST, SEAM + FIRST),
        (STORAGE, "seam_storage(sk)"),
        (PROGRAM, "static inline __attribute__((always_inline)) int judged(struct __sk_buff *skb)\n{"),
    ):
        if text.count(old) != 1:
            raise SystemExit(f"bpf/gate.c has not exactly one: {old}")
        text = text.replace(old, new)
    return text + TAIL


def main() -> None:
    maps, pin = Path(sys.argv[1]), Path(sys.argv[2])
    tree = headers.find()
    if tree is not None:
        os.environ["BCC_KERNEL_SOURCE"] = str(tree)
    from bcc import BPF

    flags = [f"-I{SOURCES / 'include'}", "-DSALLYPORT_KERNEL", f'-DSALLYPORT_PINS="{maps}"']
    module = BPF(text=source(), cflags=flags)
    libbpf.obj_pin(module.load_func("gate_egress", SCHED_CLS).fd, pin)


if __name__ == "__main__":
    main()
