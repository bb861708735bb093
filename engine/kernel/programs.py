"""The table of kernel programs: file, function, type, and where each is attached."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "bpf"

# BPF_PROG_TYPE_* and BPF_CGROUP_* of linux/bpf.h: stable numbers, so that importing bcc is not needed for them.
SCHED_CLS = 3
XDP = 6
RAW_TRACEPOINT = 17
SOCK_OPS = 13
CGROUP_SOCK_ADDR = 18
_CGROUP_SOCK_OPS = 3
_CONNECT4, _CONNECT6, _SENDMSG4, _SENDMSG6 = 10, 11, 14, 15


class Hook(str, Enum):
    TC_EGRESS = "tc egress"
    TC_INGRESS = "tc ingress"
    HOLD_START = "tc egress of the hold device's near end"
    HOLD_END = "tc ingress of the hold device"
    HOLD_RETURN = "tc egress of the hold device"
    XDP = "xdp"
    CGROUP = "cgroup"
    TRACEPOINT = "raw tracepoint"


@dataclass(frozen=True)
class Program:
    name: str
    source: str
    type: int
    hook: Hook
    attach_type: int = 0
    tracepoint: str = ""


PROGRAMS = (
    Program("gate_egress", "gate.c", SCHED_CLS, Hook.TC_EGRESS),
    Program("gate_ingress", "gate.c", SCHED_CLS, Hook.TC_INGRESS),
    Program("gate_hold", "gate.c", SCHED_CLS, Hook.HOLD_START),
    Program("gate_discard", "gate.c", SCHED_CLS, Hook.HOLD_END),
    Program("gate_release", "gate.c", SCHED_CLS, Hook.HOLD_RETURN),
    Program("gate_source", "source.c", XDP, Hook.XDP),
    Program("gate_connect4", "gate.c", CGROUP_SOCK_ADDR, Hook.CGROUP, _CONNECT4),
    Program("gate_connect6", "gate.c", CGROUP_SOCK_ADDR, Hook.CGROUP, _CONNECT6),
    Program("gate_sendmsg4", "gate.c", CGROUP_SOCK_ADDR, Hook.CGROUP, _SENDMSG4),
    Program("gate_sendmsg6", "gate.c", CGROUP_SOCK_ADDR, Hook.CGROUP, _SENDMSG6),
    Program("observe_sockops", "observe.c", SOCK_OPS, Hook.CGROUP, _CGROUP_SOCK_OPS),
    Program("observe_exec", "observe.c", RAW_TRACEPOINT, Hook.TRACEPOINT, tracepoint="sched_process_exec"),
    Program("observe_exit", "observe.c", RAW_TRACEPOINT, Hook.TRACEPOINT, tracepoint="sched_process_exit"),
)
