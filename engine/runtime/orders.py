"""A person's word: `verdict set` and `strategy set`, and the never-deny list of the configuration.

They have precedence over the policy and belong to no generation. Verdicts and strategies are kept in the state
directory, so that a restart keeps them; the never-deny list is written anew at each start.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import posixpath
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from engine.abi.numbers import (
    NAME_MAX_KERNEL,
    DestinationClass,
    KernelVerdict,
    NameClass,
    Present,
    StrategyKind,
)
from engine.abi.records import DestinationKey, NameKey, SourceKey, StrategyKey, Tuple, VerdictEntry
from engine.config import NeverDeny
from engine.errors import SallyportError, StateError, UsageError
from engine.model import net
from engine.model.decision import Reason
from engine.model.name import NamePattern
from engine.ports import Gate
from engine.runtime.force import Numbering
from engine.runtime.identify import network_bits, transport_of
from engine.runtime.identity import ExeRecord

_TRANSPORTS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
_VERDICTS = {"allow": KernelVerdict.ALLOW, "deny": KernelVerdict.DENY, "reject": KernelVerdict.REJECT}
_STRATEGIES = {
    "enforce": KernelVerdict.ENFORCE,
    "observe": KernelVerdict.OBSERVE,
    "ignore": KernelVerdict.IGNORE,
}
_SELECTORS = {
    "verdict": ("dest", "name", "source"),
    "strategy": ("exe", "cgroup", "uid", "dest", "port"),
}
_ANYWHERE = bytes(16)
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_LAST_PORT, _LAST_UID = 0xFFFF, 0xFFFFFFFE
_LAST_SECOND = 1 << 33
"""The year 2242: what is later cannot be counted in the gate's nanoseconds for sure, and was meant as never."""


@dataclass(frozen=True)
class Order:
    """One setting. `kind`: verdict or strategy; `by`: what it selects by, `value` the selector as text; `port` 0 and
    `transport` "" mean any. `expires`: seconds since 1970, 0 never."""

    kind: str
    by: str
    value: str
    word: str
    port: int = 0
    transport: str = ""
    expires: float = 0.0
    reason: str = ""

    @property
    def selector(self) -> tuple[str, str, str, int, str]:
        return self.kind, self.by, self.value, self.port, self.transport

    def covers(self, flow: Tuple) -> bool:
        """Does a setting by destination select this flow?"""
        if self.port and self.port != flow.dport:
            return False
        if self.transport and self.transport != transport_of(flow.transport).value:
            return False
        return net.from_key(flow.dst) in ipaddress.ip_network(self.value)

    @classmethod
    def make(cls, given: dict[str, Any]) -> Order:
        """Read a setting as the command line sends it. UsageError says what is wrong with it."""
        try:
            order = cls(**given)
        except TypeError as error:
            raise UsageError("The setting is not understood", hint=str(error)) from error
        if not all(isinstance(text, str) for text in (order.kind, order.by, order.value, order.word, order.reason)):
            raise UsageError("The setting is not understood", hint="Its selector, word and reason are texts.")
        words = _VERDICTS if order.kind == "verdict" else _STRATEGIES
        if order.by not in _SELECTORS.get(order.kind, ()) or order.word not in words:
            raise UsageError(f"{order.kind} cannot set {order.by} to {order.word}")
        if type(order.port) is not int or not 0 <= order.port <= _LAST_PORT:
            raise UsageError(f"{order.port!r} is no port", hint=f"Ports are 1 to {_LAST_PORT}.")
        if order.transport not in ("", *_TRANSPORTS):
            raise UsageError(f"{order.transport!r} is no transport", hint="tcp or udp.")
        if (order.port or order.transport) and order.by != "dest":
            raise UsageError("A port and a transport go with a destination")
        if type(order.expires) not in (int, float) or not 0 <= order.expires < _LAST_SECOND:
            raise UsageError(f"{order.expires!r} is no time that a setting can expire at")
        return cls(**{**asdict(order), "value": _canonical(order.by, order.value)})


def _canonical(by: str, value: str) -> str:
    try:
        if by in ("dest", "source"):
            return str(_network(value))
        if by == "name":
            return str(NamePattern.parse(value))
        if by == "uid":
            return str(_number(value, 0, _LAST_UID))
        if by == "port":
            return str(_number(value, 1, _LAST_PORT))
    except ValueError as error:
        raise UsageError(
            f"{value!r} is no {by}: {error}", hint="Examples: 192.0.2.0/24, 2001:db8::1, *.example.com, 1000."
        ) from error
    if by in ("exe", "cgroup") and not value.startswith("/"):
        raise UsageError(f"{value!r} is no absolute path")
    if by == "cgroup":
        return posixpath.normpath("/" + value.lstrip("/"))
    return value


def _network(value: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    network = ipaddress.ip_network(value, strict=False)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        # One prefix, one spelling: to the gate, and in every flow, it is IPv4.
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    elif isinstance(network, ipaddress.IPv6Network) and _MAPPED.subnet_of(network):
        # The gate keeps IPv4 below ::ffff:0:0/96: such a prefix would say more than the person who wrote it.
        raise ValueError("it would cover every IPv4 address too; name what is meant, such as 2000::/3 and fc00::/7")
    return network


def _number(text: str, least: int, most: int) -> int:
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
        raise ValueError(f"not a number from {least} to {most}")
    return int(text)


class Orders:
    """The settings in force. `present` and `on_change` keep the gate's short cuts true: a bit is set before the first
    entry stands, and cleared after the last is gone."""

    def __init__(
        self,
        gate: Gate,
        file: Path,
        numbering: Numbering,
        cgroup_mount: Path,
        on_change: Callable[[Present], None],
        executables: Callable[[], list[ExeRecord]],
    ) -> None:
        self._gate = gate
        self._file = file
        self._numbering = numbering
        self._mount = cgroup_mount
        self._on_change = on_change
        self._executables = executables
        self._orders: dict[tuple[str, str, str, int, str], Order] = {}
        self._numbers: dict[int, Order] = {}
        self._placed: dict[tuple[str, str, str, int, str], set[Any]] = {}
        """The kernel keys of each setting."""
        self._never: list[DestinationKey] = []
        self.changes = 0
        """How often something that was said took force, or lost it: connections in progress are asked anew then."""

    def start(self, never_deny: tuple[NeverDeny, ...]) -> None:
        """Write the never-deny list and the settings kept; remove entries that neither of them explains."""
        wanted: set[DestinationKey] = set()
        for entry in never_deny:
            address, bits = network_bits(entry.prefix)
            transports = (0,) if not entry.ports else (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
            if entry.transport is not None:
                transports = (_TRANSPORTS[entry.transport.value],)
            for transport in transports:
                for port in entry.ports or (0,):
                    wanted.add(DestinationKey(DestinationClass.NEVER_DENY, transport, port, address, bits))
        self._never = sorted(wanted)
        for order in map(self._here, self._read()):
            self._orders[order.selector] = order
        self._on_change(self.present())
        for key in self._never:
            self._gate.put_destination(key, VerdictEntry(KernelVerdict.ALLOW, self._numbering.next_entry()))
        ours: set[bytes] = {key.pack() for key in self._never}
        for order in self._orders.values():
            ours |= {key.pack() for key in self._put(order)}
        for destination, _ in self._gate.destination_entries():
            if destination.pack() not in ours:
                self._gate.remove_destination(destination)
        for strategy, _ in self._gate.strategy_entries():
            if strategy.pack() not in ours:
                self._gate.remove_strategy(strategy)
        for name, _ in self._gate.name_entries():
            if name.name_class == NameClass.SET and name.pack() not in ours:
                self._gate.remove_name(name)
        for source, _ in self._gate.source_entries():
            if source.generation == 0 and source.pack() not in ours:
                self._gate.remove_source(source)

    def present(self) -> Present:
        """Return which of the gate's maps for a person's word hold anything."""
        bits = Present.NEVER_DENY if self._never else Present(0)
        for order in self._orders.values():
            bits |= _present(order)
        return bits

    @property
    def speak_of_names(self) -> bool:
        return any(order.by == "name" for order in self._orders.values())

    def of_kind(self, kind: str) -> list[Order]:
        return [order for order in self._orders.values() if order.kind == kind]

    def set(self, order: Order) -> None:
        """Put a setting in force, in place of one with the same selector. The file is written first: what stands
        in the kernel survives a restart."""
        order = self._here(order)
        if order.by == "cgroup":
            self._cgroup_id(order.value)
        before = self._orders.get(order.selector)
        self._orders[order.selector] = order
        try:
            self._write()
            self._on_change(self.present())
            self._put(order)
            self.changes += 1
        except SallyportError:
            # What is not in force must not come into force at the next start.
            self._forget(order, before)
            raise

    def _forget(self, order: Order, before: Order | None) -> None:
        if before is None:
            del self._orders[order.selector]
            self._remove(order)
        else:
            self._orders[order.selector] = before
        with contextlib.suppress(StateError):
            self._write()
        self._on_change(self.present())

    def clear(self, selector: tuple[str, str, str, int, str]) -> bool:
        kind, by, value, port, transport = selector
        if by == "cgroup":
            selector = kind, by, self._below(value), port, transport
        order = self._orders.pop(selector, None)
        if order is None:
            return False
        self._remove(order)
        self.changes += 1
        self._write()
        self._on_change(self.present())
        return True

    def expire(self) -> list[Order]:
        """Forget what has expired, and follow control groups that were made anew. Return what was forgotten."""
        self._follow_cgroups()
        gone = [order for order in self._orders.values() if order.expires and order.expires <= time.time()]
        for order in gone:
            self.clear(order.selector)
        return gone

    def about_name(self, name: str) -> Order | None:
        """Return the setting about a name: the exact one, else the longest wildcard, as the gate's trie would."""
        found: Order | None = None
        for order in self.of_kind("verdict"):
            if order.by != "name" or (order.expires and order.expires <= time.time()):
                continue
            if NamePattern.parse(order.value).matches(name) and (found is None or len(order.value) > len(found.value)):
                found = order
            if order.value == name:
                return order
        return found

    def reason(self, number: int) -> Reason | None:
        """Return what an entry's number stands for, as a reason."""
        order = self._numbers.get(number)
        if order is None:
            return None
        return Reason(f"{order.kind} set", order.reason or f"{order.by} {order.value} {order.word}")

    def executable(self, record: ExeRecord) -> None:
        """An executable was seen for the first time: settings by its path hold for it."""
        for order in self._orders.values():
            if order.by == "exe" and order.value == record.path:
                key = StrategyKey(StrategyKind.EXE, record.id)
                self._placed.setdefault(order.selector, set()).add(key)
                self._gate.put_strategy(key, self._entry(order))

    def _follow_cgroups(self) -> None:
        """A service that is restarted gets a control group of the same path and another number."""
        for order in self._orders.values():
            if order.by == "cgroup" and set(self._keys(order)) != self._placed.get(order.selector, set()):
                self._remove(order)
                self._put(order)

    # ---- kernel entries

    def _put(self, order: Order) -> list[Any]:
        """Write the entries of a setting. Return their keys."""
        entry = self._entry(order)
        keys: list[Any] = []
        placed = self._placed.setdefault(order.selector, set())
        for key in self._keys(order):
            placed.add(key)
            if isinstance(key, DestinationKey):
                self._gate.put_destination(key, entry)
            elif isinstance(key, NameKey):
                self._gate.put_name(key, entry)
            elif isinstance(key, SourceKey):
                self._gate.put_sources([(key, entry)])
            else:
                self._gate.put_strategy(key, entry)
            keys.append(key)
        return keys

    def _remove(self, order: Order) -> None:
        # The keys that were written, not those that it would have now: a control group may be gone, an executable
        # forgotten.
        for key in self._placed.pop(order.selector, set()):
            if isinstance(key, DestinationKey):
                self._gate.remove_destination(key)
            elif isinstance(key, NameKey):
                self._gate.remove_name(key)
            elif isinstance(key, SourceKey):
                self._gate.remove_source(key)
            else:
                self._gate.remove_strategy(key)

    def _entry(self, order: Order) -> VerdictEntry:
        number = self._numbering.next_entry()
        self._numbers[number] = order
        expires = 0
        if order.expires:
            left = max(0.001, order.expires - time.time())
            expires = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + int(left * 1e9)
        return VerdictEntry((_VERDICTS if order.kind == "verdict" else _STRATEGIES)[order.word], number, expires)

    def _keys(self, order: Order) -> list[DestinationKey | NameKey | SourceKey | StrategyKey]:
        if order.by == "name":
            pattern = NamePattern.parse(order.value)
            if len(pattern.value) > NAME_MAX_KERNEL:
                return []  # the gate hands every longer name to the engine, which knows the setting
            return [NameKey(NameClass.SET, pattern.key() + (b"" if pattern.below else b"\0"))]
        if order.by == "source":
            address, bits = network_bits(ipaddress.ip_network(order.value))
            return [SourceKey(0, address, bits)]
        if order.by == "exe":
            ids = [record.id for record in self._executables() if record.path == order.value]
            return [StrategyKey(StrategyKind.EXE, number) for number in ids]
        if order.by == "cgroup":
            number = self._cgroup_id(order.value, missing_is_none=True)
            return [] if number is None else [StrategyKey(StrategyKind.CGROUP, number)]
        if order.by == "uid":
            return [StrategyKey(StrategyKind.USER, int(order.value))]
        kind = DestinationClass.SET if order.kind == "verdict" else DestinationClass.STRATEGY
        if order.by == "port":
            address, bits, port = _ANYWHERE, 0, int(order.value)
        else:
            address, bits = network_bits(ipaddress.ip_network(order.value))
            port = order.port
        transports = (0,) if not port else (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
        if order.transport:
            transports = (_TRANSPORTS[order.transport],)
        return [DestinationKey(kind, transport, port, address, bits) for transport in transports]

    def _here(self, order: Order) -> Order:
        return replace(order, value=self._below(order.value)) if order.by == "cgroup" else order

    def _below(self, path: str) -> str:
        """Return a control group's path below the mount, as /proc shows it; the folder's own path is in use as well."""
        mount = str(self._mount).rstrip("/")
        return path[len(mount) :] or "/" if path == mount or path.startswith(mount + "/") else path

    def _cgroup_id(self, path: str, *, missing_is_none: bool = False) -> int | None:
        try:
            return (self._mount / path.lstrip("/")).stat().st_ino
        except OSError as error:
            if missing_is_none:
                return None
            raise UsageError(f"There is no control group {path} below {self._mount}") from error

    # ---- the file

    def _read(self) -> list[Order]:
        if not self._file.exists():
            return []
        try:
            orders = [Order.make(given) for given in json.loads(self._file.read_text())]
        except (OSError, ValueError, TypeError, UsageError) as error:
            raise StateError(
                f"The settings in {self._file} cannot be read: {error}", hint="Mend the file or remove it."
            ) from error
        return [order for order in orders if not order.expires or order.expires > time.time()]

    def _write(self) -> None:
        fresh = self._file.with_suffix(".new")
        try:
            with fresh.open("w") as stream:
                stream.write(json.dumps([asdict(order) for order in self._orders.values()], indent=1) + "\n")
                stream.flush()
                # An empty file after a power cut would keep the engine from starting.
                os.fsync(stream.fileno())
            fresh.replace(self._file)
        except OSError as error:
            raise StateError(f"The setting could not be kept in {self._file}: {error.strerror}") from error


def _present(order: Order) -> Present:
    if order.kind == "strategy":
        return Present.STRATEGY_DEST if order.by in ("dest", "port") else Present.STRATEGY_ID
    return {"dest": Present.SET_DEST, "name": Present.SET_NAME, "source": Present.SET_SOURCE}[order.by]


def resolvers(text: str) -> tuple[NeverDeny, ...]:
    """Return the name servers of resolv.conf(5) text as never-deny entries on port 53."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            try:
                address = ipaddress.ip_network(words[1].partition("%")[0])
            except ValueError:
                continue
            found.append(NeverDeny(address, (53,), None))
    return tuple(found)
