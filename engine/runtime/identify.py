"""From the numbers that the kernel noted to the facts that policy sees."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime

from engine.abi.numbers import FlowFlag
from engine.abi.records import Held, Identity, Process, Tuple
from engine.model import net
from engine.model.facts import (
    ALL_FACTS,
    Cgroup,
    Clock,
    Dest,
    Direction,
    Event,
    Exe,
    Facts,
    Hello,
    Host,
    Http,
    Name,
    Source,
    Transport,
    User,
)
from engine.model.facts import Process as ProcessFacts
from engine.ports import Gate
from engine.runtime import procfs
from engine.runtime.cgroups import CgroupTable
from engine.runtime.identity import Identities
from engine.runtime.resolutions import Resolutions
from engine.runtime.users import Users

_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_TRANSPORTS: dict[int, Transport] = {
    socket.IPPROTO_TCP: Transport.TCP,
    socket.IPPROTO_UDP: Transport.UDP,
    socket.IPPROTO_ICMP: Transport.ICMP,
    socket.IPPROTO_ICMPV6: Transport.ICMP,
}
_CACHE = 4096
# A plain number: arithmetic on an enumeration is Python code, and a held packet waits for it.
_INBOUND = int(FlowFlag.INBOUND)
_NO_CLOCK = Clock(0, "")


def transport_of(number: int) -> Transport:
    return _TRANSPORTS.get(number, Transport.OTHER)


class Identifier:
    """Looks up who a flow belongs to and puts the facts together."""

    def __init__(
        self,
        gate: Gate,
        identities: Identities,
        cgroups: CgroupTable,
        users: Users,
        host: Host,
        interfaces: Mapping[int, str],
        resolutions: Resolutions | None = None,
    ) -> None:
        self._gate = gate
        self.identities = identities
        self._cgroups = cgroups
        self._users = users
        self._host = host
        self._interfaces = interfaces
        self.resolutions = resolutions
        """None: no answers are observed, and no address has a name."""
        self._dests: dict[tuple[bytes, int, int], Dest] = {}
        self.on_executable: Callable[[int], None] = _nobody
        """Hears of each executable seen for the first time, before the gate does."""
        self._newest = identities.last_id

    def executable(self, identity: Identity) -> int:
        """Return the executable's id, 0 when it cannot be known, and tell the gate of one just looked up."""
        if identity.exe and self.identities.record(identity.exe) is not None:
            return identity.exe
        if not identity.tgid:
            return 0
        record = self.identities.resolve(
            identity.tgid, identity.tid, expected=identity.exec_stamp, exec_stamp=self._stamp
        )
        if record is None:
            return 0
        if record.id > self._newest:
            self._newest = record.id
            self.on_executable(record.id)
        self._tell(identity, record.id)
        return record.id

    def adopt(self, identity: Identity) -> Identity:
        """Begin to follow a process that no hook has seen, so that its executable can be looked up like any other."""
        process = self._gate.process(identity.tgid)
        if process is None:
            process = Process(time.clock_gettime_ns(time.CLOCK_MONOTONIC), 0)
            self._gate.put_process(identity.tgid, process)
        return identity._replace(exec_stamp=process.exec_stamp, exe=process.exe)

    def executed(self, identity: Identity) -> int:
        """A process has executed another image: look it up before its first connection asks. Return its id or 0."""
        return self.executable(identity._replace(exe=0))

    def _tell(self, identity: Identity, exe: int) -> None:
        """Write the id for the process, and take it back if the process changed while it was written.

        Between look-up and write the process may have executed another image or exited, and its number may have been
        given away: the stamp read after the write tells. The exit hook fires before /proc stops showing the image, so
        an entry written too late is seen here and removed.
        """
        self._gate.put_process(identity.tgid, Process(identity.exec_stamp, exe))
        record = self.identities.resolve(
            identity.tgid, identity.tid, expected=identity.exec_stamp, exec_stamp=self._stamp
        )
        if record is None:
            self._gate.remove_process(identity.tgid)

    def _stamp(self, tgid: int) -> int | None:
        process = self._gate.process(tgid)
        return None if process is None else process.exec_stamp

    async def facts(
        self,
        event: Event,
        flow: Tuple,
        held: Held,
        exe: int,
        now: datetime,
        *,
        name: Name | None = None,
        hello: Hello | None = None,
        http: Http | None = None,
        began: tuple[str, ...] = (),
        reads: frozenset[str] = ALL_FACTS,
    ) -> Facts:
        """Return the facts of a flow. `reads`: what the rules in force see of them (Judge.reads); what costs reads of
        /proc or of the program's file is looked up only for them.

        `began`: the names that the address had when this flow was first judged. They stay this flow's: an answer says
        for how long new connections may rest on it, and no program asks again for one that it has.
        """
        identity = held.identity
        record = self.identities.record(exe) if exe else None
        path = record.path if record else ""
        digest = await self._digest(exe, identity) if "exe.sha256" in reads and record else ""
        known = identity.tgid != 0
        dest_names, left = self._names(flow.dst) if "dest_names" in reads else ((), None)
        return Facts(
            event=event,
            direction=direction_of(held.flags),
            dest=self.dest(flow),
            clock=Clock(now.hour, _WEEKDAYS[now.weekday()]),
            exe=Exe(path, digest),
            cgroup=self._cgroups.lookup(identity.cgroup, identity.tgid) if known else Cgroup(),
            user=self._user(identity.uid, reads) if known else User(),
            name=name or Name(),
            dest_names=tuple(sorted({*dest_names, *began})),
            hello=hello or Hello(),
            http=http or Http(),
            source=Source(net.text_of(flow.src), flow.sport, self._interfaces.get(held.ifindex, "")),
            process=self._process(identity, reads) if known else ProcessFacts(),
            host=self._host,
            dest_names_left=left,
        )

    async def _digest(self, exe: int, identity: Identity) -> str:
        return await self.identities.sha256(exe, identity.tgid, runs=lambda: self._runs(identity))

    def _process(self, identity: Identity, reads: frozenset[str]) -> ProcessFacts:
        if "process" not in reads:
            return ProcessFacts(identity.tgid)
        found = procfs.process("/proc", identity.tgid)
        # Else they are those of what it executed since, or of another process with its number.
        return found if self._runs(identity) else ProcessFacts()

    def _runs(self, identity: Identity) -> bool:
        """Is the process still there that the kernel named, with the image that it had?"""
        return self._stamp(identity.tgid) == identity.exec_stamp

    @staticmethod
    def gone(identity: Identity, facts: Facts, reads: frozenset[str]) -> frozenset[str]:
        """Return which facts about a process that the kernel named could not be looked up: it has ended, its control
        group is gone, or its file cannot be read. What never was there is not gone: nobody was named, or a thread of
        the kernel, which has no executable. `reads`: as for `facts`."""
        if not identity.tgid:
            return frozenset()
        found = set()
        if identity.cgroup and not facts.cgroup.path:
            found.add("cgroup")
        if "process" in reads and not facts.process.pid:
            found.add("process")
        if not facts.exe.path:
            if not procfs.is_kernel_thread("/proc", identity.tgid):
                found.add("exe")
        elif "exe.sha256" in reads and not facts.exe.sha256:
            found.add("exe")
        return frozenset(found)

    def _user(self, uid: int, reads: frozenset[str]) -> User:
        return self._users.lookup(uid) if "user" in reads else User(uid)

    def _names(self, address: bytes) -> tuple[tuple[str, ...], float | None]:
        return self.resolutions.known(address) if self.resolutions is not None else ((), None)

    def completed(self, facts: Facts, hello: Hello) -> Facts:
        """Return facts with what a decision did not need and a reader of the log wants."""
        process, user = facts.process, facts.user
        if process.pid and not process.comm:
            process = replace(process, comm=procfs.comm("/proc", process.pid))
        if user.uid >= 0 and not user.name:
            user = self._users.lookup(user.uid)
        return replace(facts, process=process, user=user, hello=hello)

    def outline(
        self, event: Event, flow: Tuple, identity: Identity, name: Name, direction: Direction = Direction.EGRESS
    ) -> Facts:
        """Return what an alert or an entry shows of a flow that the kernel decided alone. The policy is never asked
        with these: what costs a look at /proc is left out."""
        record = self.identities.record(identity.exe) if identity.exe else None
        return Facts(
            event,
            direction,
            self.dest(flow),
            _NO_CLOCK,
            exe=Exe(record.path if record else ""),
            user=User(identity.uid if identity.tgid else -1),
            name=name,
            source=Source(str(net.from_key(flow.src)), flow.sport) if direction is Direction.INGRESS else Source(),
            process=ProcessFacts(identity.tgid),
        )

    def cgroup(self, number: int) -> Cgroup:
        return self._cgroups.lookup(number)

    def user(self, uid: int) -> User:
        return self._users.lookup(uid)

    def interface(self, index: int) -> str:
        return self._interfaces.get(index, "")

    def dest(self, flow: Tuple) -> Dest:
        return self.place(flow.dst, flow.dport, flow.transport)

    def place(self, address_key: bytes, port: int, transport: int) -> Dest:
        """Return the fact of a destination. The newest are kept; all are forgotten at once when there are too many."""
        key = (address_key, port, transport)
        found = self._dests.get(key)
        if found is None:
            if len(self._dests) >= _CACHE:
                self._dests.clear()
            address = net.from_key(address_key)
            found = Dest(str(address), port, transport_of(transport), net.locality(address))
            self._dests[key] = found
        return found


def direction_of(flags: int) -> Direction:
    """Return the fact of a flow with these FLOW_* bits."""
    return Direction.INGRESS if flags & _INBOUND else Direction.EGRESS


def _nobody(_number: int) -> None:
    """The listener until there is one."""


def network_bits(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> tuple[bytes, int]:
    """Return (16 key bytes, significant bits of them) of a prefix."""
    bits = network.prefixlen + (96 if network.version == 4 else 0)
    return net.to_key(network.network_address), bits
