"""Network and process entries with their OCSF body. FORMAT.md section 4; OCSF 1.5.0, security_control
profile.

Callers give plain values (`Flow`, `Process`); nobody outside this module needs to know an OCSF number.
`gc=False`: these trees hold no cycles, and a collector that walks a dozen objects for each entry halves the
rate.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Literal

import msgspec

from audit.entry import Entry, Generation, blank, plain_text

OCSF_VERSION = "1.5.0"
_NETWORK = 4001
_PROCESS = 1007
_OPEN, _CLOSE, _REFUSE, _TRAFFIC = 1, 2, 5, 6
_PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1}
_DIRECTIONS = {"ingress": 1, "egress": 2}
_DISPOSITIONS = {
    "allow": (1, 1, "Allowed"),
    "undecided": (1, 1, "Allowed"),
    "deny": (2, 2, "Blocked"),
    "reject": (2, 25, "Rejected"),
}
_IGNORED = (1, 16, "No Action")
_OBSERVED = (3, 17, "Logged")
_INFORMATIONAL, _LOW, _HIGH = 1, 2, 4
_ALPN_EXTENSION, _VERSIONS_EXTENSION = 16, 43


class Process(msgspec.Struct, frozen=True, gc=False):
    """Who: `pid` 0, `uid` -1 and empty texts when unknown."""

    pid: int = 0
    comm: str = ""
    exe: str = ""
    uid: int = -1
    user: str = ""
    cgroup: str = ""
    unit: str = ""
    container: str = ""


class Flow(msgspec.Struct, frozen=True, gc=False):
    """One flow with what is known of it. Addresses in canonical text, ports 0 and texts empty when unknown.

    `cookie`: the socket's, decimal or hex as the caller likes. `versions` and `alpn` as the client offers
    them.
    """

    src_ip: str = ""
    src_port: int = 0
    dst_ip: str = ""
    dst_port: int = 0
    transport: str = "tcp"
    direction: str = "egress"
    interface: str = ""
    locality: str = ""
    cookie: str = ""
    process: Process | None = None
    name: str = ""
    name_state: str = ""
    ech: bool = False
    versions: tuple[str, ...] = ()
    alpn: tuple[str, ...] = ()
    ja4: str = ""


class _Endpoint(msgspec.Struct, omit_defaults=True, gc=False):
    ip: str = ""
    port: int = 0
    hostname: str = ""
    interface_name: str = ""


class _Connection(msgspec.Struct, omit_defaults=True, gc=False):
    direction_id: int
    protocol_name: str = ""
    protocol_num: int = -1
    protocol_ver_id: int = 0
    uid: str = ""


class _File(msgspec.Struct, gc=False):
    name: str
    path: str
    type_id: int = 1


class _User(msgspec.Struct, omit_defaults=True, gc=False):
    uid: str = ""
    name: str = ""


class _Container(msgspec.Struct, gc=False):
    uid: str


class _Process(msgspec.Struct, omit_defaults=True, gc=False):
    pid: int
    name: str = ""
    file: _File | None = None
    user: _User | None = None
    container: _Container | None = None


class _Actor(msgspec.Struct, gc=False):
    process: _Process


@lru_cache(maxsize=4096)
def _actor(process: Process) -> msgspec.Raw:
    """The actor of an entry, encoded: half of a line, and the same for every socket of a program."""
    try:
        return msgspec.Raw(msgspec.json.encode(_Actor(_process(process))))
    except UnicodeEncodeError:
        return msgspec.Raw(msgspec.json.encode(plain_text(msgspec.to_builtins(_Actor(_process(process))))))


class _Extension(msgspec.Struct, gc=False):
    type_id: int
    data: dict[str, tuple[str, ...]]


class _Tls(msgspec.Struct, omit_defaults=True, gc=False):
    sni: str = ""
    tls_extension_list: tuple[_Extension, ...] = ()


class _Ja4(msgspec.Struct, gc=False):
    type_id: int
    type: str
    value: str


class _Rule(msgspec.Struct, gc=False):
    name: str
    message: str


class _Traffic(msgspec.Struct, gc=False):
    bytes_in: int
    bytes_out: int
    bytes: int


class Reason(msgspec.Struct, frozen=True, gc=False):
    """Why: the rule's name and the message it gave."""

    rule: str
    message: str


class _Unmapped(msgspec.Struct, omit_defaults=True, gc=False):
    event: str = ""
    stage: str = ""
    verdict: str = ""
    would: str = ""
    scope: tuple[str, ...] = ()
    reasons: tuple[Reason, ...] = ()
    cached: bool = False
    ignored: bool = False
    failed: bool = False
    name_state: str = ""
    ech: bool = False
    held_us: int = 0
    locality: str = ""
    cgroup: str = ""
    unit: str = ""


class Body(msgspec.Struct, omit_defaults=True, gc=False):
    """An OCSF event. `time` 0 is filled in by the log."""

    class_uid: int
    category_uid: int
    activity_id: int
    type_uid: int
    severity_id: int
    metadata: dict[str, Any]
    time: int = 0
    action_id: int = 0
    disposition_id: int = 0
    disposition: str = ""
    src_endpoint: _Endpoint | None = None
    dst_endpoint: _Endpoint | None = None
    connection_info: _Connection | None = None
    actor: msgspec.Raw | None = None
    process: _Process | None = None
    tls: _Tls | None = None
    ja4_fingerprint_list: tuple[_Ja4, ...] = ()
    firewall_rule: _Rule | None = None
    traffic: _Traffic | None = None
    duration: int = -1
    unmapped: _Unmapped | None = None


def _metadata(*profiles: str) -> dict[str, Any]:
    return {
        "version": OCSF_VERSION,
        "product": {"name": "Sallyport", "vendor_name": "Sallyport"},
        "profiles": list(profiles),
    }


_CONTROL_METADATA = _metadata("security_control")
_METADATA = _metadata()


def decision(
    flow: Flow,
    verdict: str,
    *,
    event: str,
    stage: str,
    scope: Iterable[str] = (),
    reasons: Iterable[tuple[str, str]] = (),
    would: str = "",
    cached: bool = False,
    ignored: bool = False,
    failed: bool = False,
    held_us: int = 0,
    time_ns: int = 0,
    generation: Generation | None = None,
    kind: Literal["decision", "flow"] = "decision",
) -> Entry:
    """Return the entry of a verdict: asked of the policy (`decision`), or applied by the kernel (`flow`).

    `verdict`: what happened to the flow (allow, deny, reject, undecided). `would`: in observe mode, the
    verdict that was not applied; then `verdict` is allow. `reasons`: (rule, message), the deciding one first.
    `time_ns`: when it happened, 0 for now.
    """
    if ignored:
        outcome = _IGNORED
    elif would:
        outcome = _OBSERVED
    else:
        outcome = _DISPOSITIONS[verdict]
    denied = (would or verdict) in ("deny", "reject")
    activity = _REFUSE if outcome[0] == 2 else (_OPEN if stage == "connect" else _TRAFFIC)
    body = _network(flow, activity, _HIGH if failed else (_LOW if denied else _INFORMATIONAL), time_ns)
    body.metadata = _CONTROL_METADATA
    body.action_id, body.disposition_id, body.disposition = outcome
    given = tuple([Reason(rule, message) for rule, message in reasons])
    if given:
        body.firewall_rule = _Rule(given[0].rule, given[0].message)
    ours = _unmapped(flow, event)
    ours.stage = stage
    ours.verdict = verdict
    ours.would = would
    ours.scope = tuple(sorted(scope))
    ours.reasons = given
    ours.cached = cached
    ours.ignored = ignored
    ours.failed = failed
    ours.held_us = held_us
    body.unmapped = ours
    return blank(kind, generation=generation, ocsf=body)


def socket_open(flow: Flow, *, time_ns: int = 0, generation: Generation | None = None) -> Entry:
    """Return the entry of a socket that opened."""
    body = _network(flow, _OPEN, _INFORMATIONAL, time_ns)
    body.unmapped = _unmapped(flow, "open")
    return blank("socket", generation=generation, ocsf=body)


def socket_close(
    flow: Flow,
    *,
    bytes_in: int,
    bytes_out: int,
    duration_ns: int,
    time_ns: int = 0,
    generation: Generation | None = None,
) -> Entry:
    """Return the entry of a socket that closed, with the bytes of its payload both ways and its life."""
    body = _network(flow, _CLOSE, _INFORMATIONAL, time_ns)
    body.traffic = _Traffic(bytes_in, bytes_out, bytes_in + bytes_out)
    body.duration = duration_ns // 1_000_000
    body.unmapped = _unmapped(flow, "close")
    return blank("socket", generation=generation, ocsf=body)


def process_event(
    process: Process,
    event: Literal["exec", "exit"],
    *,
    time_ns: int = 0,
    generation: Generation | None = None,
) -> Entry:
    """Return the entry of a program that was executed or exited."""
    activity = 1 if event == "exec" else 2
    body = Body(
        _PROCESS, 1, activity, _PROCESS * 100 + activity, _INFORMATIONAL, _METADATA, time_ns // 1_000_000,
        process=_process(process),
        unmapped=_Unmapped(event=event, cgroup=process.cgroup, unit=process.unit),
    )  # fmt: skip
    return blank("socket", generation=generation, ocsf=body)


def _network(flow: Flow, activity: int, severity: int, time_ns: int) -> Body:
    body = Body(
        _NETWORK, 4, activity, _NETWORK * 100 + activity, severity, _METADATA, time_ns // 1_000_000,
        dst_endpoint=_Endpoint(flow.dst_ip, flow.dst_port, flow.name),
        connection_info=_Connection(
            _DIRECTIONS.get(flow.direction, 0), flow.transport, _PROTOCOLS.get(flow.transport, -1),
            6 if ":" in flow.dst_ip else (4 if flow.dst_ip else 0), flow.cookie,
        ),
    )  # fmt: skip
    if flow.src_ip or flow.src_port or flow.interface:
        body.src_endpoint = _Endpoint(flow.src_ip, flow.src_port, "", flow.interface)
    if flow.process is not None:
        body.actor = _actor(flow.process)
    if flow.name or flow.versions or flow.alpn:
        body.tls = _Tls(flow.name, _extensions(flow))
    if flow.ja4:
        body.ja4_fingerprint_list = (_Ja4(1, "JA4", flow.ja4),)
    return body


def _extensions(flow: Flow) -> tuple[_Extension, ...]:
    alpn = (_Extension(_ALPN_EXTENSION, {"protocols": flow.alpn}),) if flow.alpn else ()
    versions = (_Extension(_VERSIONS_EXTENSION, {"versions": flow.versions}),) if flow.versions else ()
    return alpn + versions


def _process(process: Process) -> _Process:
    known = _Process(process.pid, process.comm)
    if process.exe:
        known.file = _File(process.exe.rpartition("/")[2], process.exe)
    if process.uid >= 0:
        known.user = _User(str(process.uid), process.user)
    if process.container:
        known.container = _Container(process.container)
    return known


def _unmapped(flow: Flow, event: str) -> _Unmapped:
    ours = _Unmapped(event, name_state=flow.name_state, ech=flow.ech, locality=flow.locality)
    if flow.process is not None:
        ours.cgroup, ours.unit = flow.process.cgroup, flow.process.unit
    return ours


def stamp(entry: Entry) -> None:
    """Give an entry's body the entry's own time if it has none: milliseconds, as OCSF counts."""
    body: Any = entry.ocsf
    if isinstance(body, Body) and body.time == 0:
        body.time = entry.time_ns // 1_000_000
