"""The engine's entries in the audit log: its own values turned into those that audit/ takes."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

from audit import ocsf
from audit.entry import EntryType, note
from audit.log import AuditLog
from engine.abi.numbers import EventType, FlowFlag, KernelVerdict, Origin
from engine.abi.records import ProcessEvent, SocketEvent, VerdictEvent
from engine.model import net
from engine.model.decision import Decision, Reason, Stage
from engine.model.facts import Facts, Name
from engine.runtime.identify import Identifier, direction_of

_OBSERVE, _INBOUND = int(FlowFlag.OBSERVE), int(FlowFlag.INBOUND)
_VERDICT_WORDS = {
    int(KernelVerdict.ALLOW): "allow",
    int(KernelVerdict.DENY): "deny",
    int(KernelVerdict.REJECT): "reject",
}
_IGNORE = int(KernelVerdict.IGNORE)


class Journal:
    """Writes entries. Every method returns the sequence number, None when the log had no room (it counts that)."""

    def __init__(self, log: AuditLog, identifier: Identifier) -> None:
        self._log = log
        self._identifier = identifier
        self._processes: dict[tuple[int, int, int, int], ocsf.Process] = {}
        """What a process's numbers mean, for as long as there are few of them: a socket's events come in pairs."""

    @property
    def failing(self) -> bool:
        """The disk refuses the log at the moment."""
        return self._log.state.status == "failing"

    def note(self, kind: EntryType, /, **detail: Any) -> int | None:
        return self._log.append(note(kind, **detail))

    def decision(
        self, facts: Facts, decision: Decision, stage: Stage, *, observed: bool, held_ns: int, cookie: int
    ) -> int | None:
        """A flow was judged by the policy."""
        passes = decision.verdict.passes
        return self._log.append(
            ocsf.decision(
                _flow(facts, cookie),
                "allow" if observed and not passes else decision.verdict.value,
                would=decision.verdict.value if observed and not passes else "",
                event=facts.event.value,
                stage=stage.value,
                scope=decision.scope,
                reasons=_reasons(decision.reasons),
                failed=decision.failed,
                held_us=held_ns // 1000,
            )
        )

    def verdict(self, event: VerdictEvent, name: Name, reasons: tuple[Reason, ...]) -> int | None:
        """A verdict that stands in the kernel met a flow."""
        word = _VERDICT_WORDS.get(event.verdict, "allow")
        observed = bool(event.flags & _OBSERVE) and word != "allow"
        return self._log.append(
            ocsf.decision(
                self._kernel_flow(event, name),
                "allow" if observed else word,
                would=word if observed else "",
                event="connect" if event.type == EventType.REFUSED or not event.stage else "payload",
                stage="payload" if event.stage else "connect",
                reasons=_reasons(reasons) or ((Origin(event.origin).name.lower(), "a standing verdict"),),
                cached=True,
                ignored=event.verdict == _IGNORE,
                time_ns=_wall(event.time),
                kind="flow",
            )
        )

    def socket(self, event: SocketEvent) -> int | None:
        """A TCP socket opened or closed."""
        flow = _wire_flow(
            self._identifier, event.src, event.sport, event.dst, event.dport, event.transport, event.cookie,
            self._process(event.tgid, event.exe, event.uid, event.cgroup),
            "ingress" if event.flags & _INBOUND else "egress",
        )  # fmt: skip
        if event.type == EventType.CLOSE:
            return self._log.append(
                ocsf.socket_close(
                    flow,
                    bytes_in=event.bytes_received,
                    bytes_out=event.bytes_sent(),
                    duration_ns=event.time - event.opened if event.opened else 0,
                    time_ns=_wall(event.time),
                )
            )
        return self._log.append(ocsf.socket_open(flow, time_ns=_wall(event.time)))

    def process(self, event: ProcessEvent, exe: int) -> int | None:
        """A program was executed, or a process ended."""
        identity = event.identity
        who = self._process(identity.tgid, exe, identity.uid, identity.cgroup) or ocsf.Process()
        return self._log.append(
            ocsf.process_event(who, "exec" if event.type == EventType.EXEC else "exit", time_ns=_wall(event.time))
        )

    def _kernel_flow(self, event: VerdictEvent, name: Name) -> ocsf.Flow:
        identity, flow = event.identity, event.tuple
        process = self._process(identity.tgid, identity.exe, identity.uid, identity.cgroup)
        return _wire_flow(
            self._identifier, flow.src, flow.sport, flow.dst, flow.dport, flow.transport, event.cookie, process,
            direction_of(event.flags).value, self._identifier.interface(event.ifindex), name,
        )  # fmt: skip

    def _process(self, tgid: int, exe: int, uid: int, cgroup: int) -> ocsf.Process | None:
        if not tgid:
            return None
        key = (tgid, exe, uid, cgroup)
        known = self._processes.get(key)
        if known is not None:
            return known
        if len(self._processes) >= _PROCESSES:
            self._processes.clear()
        record = self._identifier.identities.record(exe) if exe else None
        made = _process_of(self._identifier, tgid, record.path if record else "", uid, cgroup)
        if exe and made.cgroup:
            self._processes[key] = made
        return made


_NO_NAME = Name()
_PROCESSES = 4096
_OFFSET_SECONDS = 60.0


class _Wall:
    """CLOCK_MONOTONIC to wall time; the difference is taken anew every minute, because the wall clock is slewed."""

    def __init__(self) -> None:
        self._offset = 0
        self._until = 0.0

    def __call__(self, monotonic: int) -> int:
        now = time.monotonic()
        if now >= self._until:
            self._offset = time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            self._until = now + _OFFSET_SECONDS
        return monotonic + self._offset


_wall = _Wall()


@lru_cache(maxsize=4096)
def _address(key: bytes) -> str:
    return "" if key == bytes(16) else str(net.from_key(key))


def _reasons(reasons: tuple[Reason, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((reason.rule, reason.message) for reason in reasons)


def _process_of(identifier: Identifier, tgid: int, path: str, uid: int, cgroup: int) -> ocsf.Process:
    where = identifier.cgroup(cgroup)
    return ocsf.Process(tgid, "", path, uid, identifier.user(uid).name, where.path, where.unit, where.container)


def _wire_flow(
    identifier: Identifier, src: bytes, sport: int, dst: bytes, dport: int, transport: int, cookie: int,
    process: ocsf.Process | None, direction: str, interface: str = "", name: Name = _NO_NAME,
) -> ocsf.Flow:  # fmt: skip
    dest = identifier.place(dst, dport, transport)
    return ocsf.Flow(
        _address(src), sport, dest.address, dport, dest.transport.value, direction, interface, dest.locality,
        str(cookie) if cookie else "", process, name.value, "complete" if name.value else "", name.ech,
    )  # fmt: skip


def _flow(facts: Facts, cookie: int) -> ocsf.Flow:
    process = None
    if facts.process.pid:
        process = ocsf.Process(
            facts.process.pid, facts.process.comm, facts.exe.path, facts.user.uid, facts.user.name,
            facts.cgroup.path, facts.cgroup.unit, facts.cgroup.container,
        )  # fmt: skip
    return ocsf.Flow(
        facts.source.address, facts.source.port, facts.dest.address, facts.dest.port, facts.dest.transport.value,
        facts.direction.value, facts.source.interface, facts.dest.locality, str(cookie) if cookie else "", process,
        facts.name.value, facts.name.state.value if facts.event.value != "connect" else "", facts.name.ech,
        facts.hello.versions, facts.hello.alpn, facts.hello.ja4,
    )  # fmt: skip
