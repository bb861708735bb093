"""The facts that policy sees: every one of them always present, typed and canonical.

`Facts.document()` is the complete policy input. A rule sees only the facts that it declares as its scope
(`Facts.select`), so what it does not get it cannot depend on. docs/policy.md is the description for policy authors,
policies/schemas/input.json the schema; a test holds the three together.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any


class Event(str, Enum):
    """What is being judged."""

    CONNECT = "connect"
    PAYLOAD = "payload"
    LATE = "late"
    DATAGRAM = "datagram"
    ACCEPT = "accept"


class Direction(str, Enum):
    EGRESS = "egress"
    INGRESS = "ingress"


class Transport(str, Enum):
    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"
    OTHER = "other"


class NameState(str, Enum):
    """What became of the search for a server name in the first payload.

    complete: a whole ClientHello with one usable name. absent: a whole ClientHello without a name. partial: the
    hello was not whole within the bounds of the hold (bytes, time). malformed: it contradicts its own lengths, or
    names itself twice. invalid: the name is no host name (an address literal, a control character, too long).
    not_tls: the payload is something else. unsupported: a protocol whose name is not read. unseen: the flow's first
    payload went by before the gate saw it.
    """

    COMPLETE = "complete"
    ABSENT = "absent"
    PARTIAL = "partial"
    MALFORMED = "malformed"
    INVALID = "invalid"
    NOT_TLS = "not_tls"
    UNSUPPORTED = "unsupported"
    UNSEEN = "unseen"


@dataclass(frozen=True, slots=True)
class Dest:
    """`address` canonical text (IPv4-mapped turned into IPv4, no zone); `port` 0 where the transport has none."""

    address: str
    port: int
    transport: Transport
    locality: str


@dataclass(frozen=True, slots=True)
class Exe:
    """`path` as the process's own mount namespace shows it; both empty when unknown. `sha256` hex, filled in only
    when a rule in force reads it."""

    path: str = ""
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Cgroup:
    """`path` below the cgroup v2 mount; `unit` the systemd unit as sd_pid_get_unit(3) reads
    it: the outermost below the slices, so that no user can name one; `container` the id found in the path."""

    path: str = ""
    unit: str = ""
    container: str = ""


@dataclass(frozen=True, slots=True)
class User:
    """`uid` is -1 when unknown."""

    uid: int = -1
    name: str = ""


@dataclass(frozen=True, slots=True)
class Name:
    """`value`: lower-case A-label without trailing dot, empty unless `state` is complete. `ech`: the hello carries
    encrypted_client_hello, so `value` is only the outer name."""

    value: str = ""
    state: NameState = NameState.UNSEEN
    ech: bool = False


@dataclass(frozen=True, slots=True)
class Clock:
    """`hour` 0-23 and `weekday` (monday ... sunday) in the host's time zone."""

    hour: int
    weekday: str


@dataclass(frozen=True, slots=True)
class Hello:
    """`versions` as offered ("1.3", "1.2", ...), `alpn` as offered, `ja4` fingerprint or empty."""

    versions: tuple[str, ...] = ()
    alpn: tuple[str, ...] = ()
    ja4: str = ""


@dataclass(frozen=True, slots=True)
class Http:
    method: str = ""
    host: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    address: str = ""
    port: int = 0
    interface: str = ""


@dataclass(frozen=True, slots=True)
class Process:
    """`pid` is the thread group id in the initial namespace, 0 when unknown; `parents` are executable paths,
    nearest first."""

    pid: int = 0
    comm: str = ""
    args: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Host:
    name: str = ""
    labels: dict[str, str] = field(default_factory=dict)


ALL_FACTS = frozenset(
    {
        "event", "direction", "dest", "exe", "cgroup", "user", "name", "dest_names", "clock", "hello", "http",
        "source", "process", "host",
    }
)  # fmt: skip
PAYLOAD_FACTS = frozenset({"name", "hello", "http"})
"""Not there yet at connect."""
KEY_FACTS = frozenset({"dest", "exe", "cgroup", "user", "name"})
"""Facts that a kernel key can hold, one to one."""
FREE_FACTS = frozenset({"event", "direction", "clock", "host"})
"""Facts that cost no key part: fixed by the map, bounded by expiry, or constant."""
FLOW_FACTS = ALL_FACTS - KEY_FACTS - FREE_FACTS
"""Facts of this flow only: a verdict that read one of them serves no other flow. `dest_names` is one: an answer reaches
the program that waits for it before the engine has read it, and the connection that follows would meet a verdict from
before the answer, whether that knew other names of the address or none."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything known about one flow at one stage. `dest_names_left` is no fact: the seconds for which every one of
    `dest_names` is good, None where there is none."""

    event: Event
    direction: Direction
    dest: Dest
    clock: Clock
    exe: Exe = Exe()
    cgroup: Cgroup = Cgroup()
    user: User = User()
    name: Name = Name()
    dest_names: tuple[str, ...] = ()
    hello: Hello = Hello()
    http: Http = Http()
    source: Source = Source()
    process: Process = Process()
    host: Host = field(default_factory=Host)
    dest_names_left: float | None = field(default=None, compare=False)

    def document(self) -> dict[str, Any]:
        """Return the complete policy input as JSON-ready values."""
        return self.select(ALL_FACTS)

    def select(self, scope: frozenset[str]) -> dict[str, Any]:
        """Return the policy input of a rule with this scope: its facts and no others."""
        return {fact: _plain(_value(getattr(self, fact))) for fact in sorted(scope)}


def _value(fact: Any) -> Any:
    return asdict(fact) if hasattr(fact, "__dataclass_fields__") else fact


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(inner) for inner in value]
    return value
