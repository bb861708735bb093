"""The enumerations of bpf/include/abi.h, number for number."""

from __future__ import annotations

from enum import IntEnum, IntFlag

ABI = 3
NAME_KEY_BYTES = 200
NAME_MAX_KERNEL = 199
HELLO_KEPT = 4096
SHAPES_MAX = 8
PLANS = 4
DNS_BYTES = 4096


class Mode(IntEnum):
    OBSERVE = 0
    ENFORCE = 1
    PANIC = 2


class KernelVerdict(IntEnum):
    NONE = 0
    ALLOW = 1
    DENY = 2
    REJECT = 3
    UNDECIDED = 4
    IGNORE = 5
    OBSERVE = 6
    ENFORCE = 7


class Origin(IntEnum):
    NONE = 0
    NEVER_DENY = 1
    SET = 2
    STRATEGY = 3
    FLOW = 4
    DEST = 5
    NAME = 6
    SOURCE = 7
    POSTURE = 8


class DestinationClass(IntEnum):
    NEVER_DENY = 1
    SET = 2
    STRATEGY = 3


class Present(IntFlag):
    NEVER_DENY = 1
    SET_DEST = 2
    SET_NAME = 4
    STRATEGY_DEST = 8
    STRATEGY_ID = 16
    SET_SOURCE = 32
    SOURCE = 64
    INBOUND = 128
    DNS = 256
    INSIDE = 512


class PostureBit(IntFlag):
    ENGINE_ABSENT = 1
    HOLD_FULL = 2
    MAP_FULL = 4
    MALFORMED = 8
    FRAGMENT = 16
    UNKNOWN_INTERFACE = 32


class Shape(IntFlag):
    DEST = 1
    EXE = 2
    CGROUP = 4
    USER = 8
    INBOUND = 128


class InterfaceKind(IntFlag):
    ETHERNET = 1
    INSIDE = 2


class Hook(IntEnum):
    EGRESS = 0
    INGRESS = 1


class IcmpKind(IntEnum):
    REQUEST_IN = 0
    ANSWER_IN = 1
    OTHER = 2


class OpenedBy(IntEnum):
    OUTSIDE = 1
    HERE = 2


class StrategyKind(IntEnum):
    EXE = 1
    CGROUP = 2
    USER = 3


class NameClass(IntEnum):
    SET = 1
    FIRST_FREE = 16


class StageNumber(IntEnum):
    CONNECT = 0
    PAYLOAD = 1
    REJECT = 2
    AGAIN = 3


class FlowFlag(IntFlag):
    PAYLOAD_PASSED = 1
    HOLDING = 2
    OBSERVE = 4
    INBOUND = 8
    CLONED = 16
    NO_STORAGE = 32
    COPIED = 64
    STARTED = 128


class EventType(IntEnum):
    OPEN = 1
    CLOSE = 3
    EXEC = 4
    EXIT = 5
    VERDICT = 6
    VERDICT_NAME = 7
    REFUSED = 8
    DNS = 9


class Counter(IntEnum):
    PASSED_NOT_IP = 0
    PASSED_LINK_CONTROL = 1
    PASSED_FRAGMENT = 2
    PASSED_NEVER_DENY = 3
    PASSED_IGNORED = 4
    PASSED_INBOUND = 5
    PASSED_POSTURE = 6
    PASSED_PANIC = 7
    HELD_CONNECT = 8
    HELD_PAYLOAD = 9
    HELD_LATE = 10
    HELD_DATAGRAM = 11
    HIT_FLOW = 12
    HIT_DEST = 13
    HIT_NAME = 14
    HIT_SET = 15
    DROPPED_FLOW = 16
    DROPPED_DEST = 17
    DROPPED_NAME = 18
    DROPPED_SET = 19
    DROPPED_SOURCE = 20
    DROPPED_MALFORMED = 21
    DROPPED_FRAGMENT = 22
    DROPPED_ENGINE_ABSENT = 23
    DROPPED_HOLD_FULL = 24
    DROPPED_MAP_FULL = 25
    REFUSED_CONNECT = 26
    REFUSED_STORAGE = 27
    WOULD_DROP = 28
    LOST_EVENT = 29
    LOST_FLOW_VERDICT = 30
    LOST_PROCESS = 31
    PASSED_REPLY = 32
    PASSED_FORWARDED = 33
    PASSED_RELEASED = 34
    HELD_INBOUND = 35
    HELD_REJECT = 36
    DROPPED_INBOUND = 37
    DROPPED_INTERFACE = 38
    LOST_INBOUND_FLOW = 39
    HELD_AGAIN = 40


COUNTERS = 41
LOSSES = (Counter.LOST_EVENT, Counter.LOST_FLOW_VERDICT, Counter.LOST_PROCESS, Counter.LOST_INBOUND_FLOW)
