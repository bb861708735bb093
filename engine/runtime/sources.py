"""Who may send to this host at all: a policy's source prefixes and limits in the kernel, and the sources it blocked.

The kernel judges and blocks by itself (bpf/source.c), with the engine or without it. What is decided here is where a
prefix stands, and who hears of a block.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, TypeVar

from engine.abi.numbers import KernelVerdict
from engine.abi.records import SourceKey
from engine.abi.source import (
    EVENT_BLOCKED,
    LENGTHS,
    Blocked,
    Cause,
    Family,
    Limits,
    PrefixKey,
    SourceCounter,
    SourceEntry,
    SourceEvent,
    SourcePlan,
)
from engine.alerts.alert import Alert, Kind, Severity
from engine.errors import UsageError
from engine.model import net
from engine.policy.sources import FloodLimit, Prefixes, ScanLimit, SourceRules
from engine.runtime.journal import Journal

T = TypeVar("T")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_SLICE = 4096
_BULK = 1024
"""Prefixes of one length that are worth a look-up of their own: it costs 20 ns, and every frame pays it."""
_SHOWN = 256
_FAMILIES = {4: (Family.IPV4, bytes(10) + b"\xff\xff"), 6: (Family.IPV6, b"")}
"""IP version -> the kernel's family, and what stands before an address in a key."""
_NS = 1_000_000_000


class SourceMaps(Protocol):
    """The maps of bpf/source.c. Every put raises MapFullError when there is no room."""

    def plan(self, generation: int) -> SourcePlan: ...
    def set_plan(self, plan: SourcePlan) -> None: ...
    def put_hashed(self, entries: Sequence[tuple[PrefixKey, SourceEntry]]) -> None: ...
    def put_trie(self, entries: Sequence[tuple[SourceKey, SourceEntry]]) -> None: ...
    def keep(self, generations: frozenset[int]) -> int: ...
    def blocks(self) -> list[tuple[bytes, Blocked]]: ...
    def lift(self, address: bytes) -> bool: ...
    def flags(self) -> dict[str, int]: ...
    def counters(self) -> dict[SourceCounter, int]: ...
    def fill(self) -> dict[str, tuple[int, int]]: ...
    def room(self) -> tuple[int, int]: ...


class Sources:
    """One engine's sources. `interface` names a device by its index; `clock`: CLOCK_MONOTONIC ns."""

    def __init__(
        self, maps: SourceMaps, journal: Journal, alert: Callable[[Alert], None], interface: Callable[[int], str],
        *, taken_over: bool = False, clock: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_MONOTONIC),
    ) -> None:  # fmt: skip
        self._maps = maps
        self._journal = journal
        self._alert = alert
        self._interface = interface
        self._clock = clock
        self._writing = asyncio.Lock()
        self._sizes: dict[int, tuple[int, int]] = {}
        """Generation -> how many prefixes it has in the hash and in the trie."""
        self._is_known = not taken_over
        """Nothing stands but what `_sizes` says."""
        self._told: dict[bytes, int] = {}
        """Address -> `since` of the block that was told last."""
        # Those that the engine before this one was alive for; what it was not, the ring still tells.
        self._inherited = {address: block.since for address, block in maps.blocks()}
        self._blocks = maps.counters()[SourceCounter.BLOCKS]

    # ---- what a generation says

    async def prepare(self, number: int, rules: SourceRules, *, standing: bool = False) -> None:
        """Write what a generation says of sources, before its number is in force. `standing`: an engine before this one
        has written it. Raises MapFullError: then nothing of it is left."""
        async with self._writing:
            self._sizes[number] = sizes(rules)
            if standing and self._maps.plan(number).generation == number:
                return
            try:
                await self._aside(self._write, number, rules)
            except BaseException:
                await asyncio.shield(self._sweep(number))
                raise

    async def retire(self, in_force: int) -> int:
        """Remove the prefixes of every generation before the one in force. Return how many."""
        async with self._writing:
            return await self._sweep(*(number for number in self._sizes if number < in_force))

    async def _sweep(self, *gone: int) -> int:
        kept = frozenset(self._sizes) - frozenset(gone)
        removed = await self._aside(self._maps.keep, kept)
        self._sizes = {number: size for number, size in self._sizes.items() if number in kept}
        self._is_known = True
        return removed

    async def _aside(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do what takes as long as there are prefixes: a million take seconds, in which a thread does it."""
        if self._is_known and sum(map(sum, self._sizes.values())) <= _SLICE:
            return work(*arguments)
        return await asyncio.to_thread(work, *arguments)

    def _write(self, number: int, rules: SourceRules) -> None:
        plan = layout(number, rules)
        # An allow is written over a deny of the same prefix.
        for prefixes, verdict in ((rules.deny, KernelVerdict.DENY), (rules.allow, KernelVerdict.ALLOW)):
            for some in _slices(prefixes):
                hashed, trie = [], []
                for version, length, address in some:
                    family, before = _FAMILIES[version]
                    bits = 8 * len(before) + length
                    entry = SourceEntry(verdict, bits)
                    if bits in plan.hashed[family]:
                        hashed.append((PrefixKey(number, bits, before + address), entry))
                    else:
                        trie.append((SourceKey(number, before + address, bits), entry))
                self._maps.put_hashed(hashed)
                self._maps.put_trie(trie)
        self._maps.set_plan(plan)

    def fill(self) -> dict[str, tuple[int, int]]:
        """Return {map: (entries, most)}. Prefixes are counted as they were said: to walk a million takes seconds."""
        hashed, trie = (sum(size[at] for size in self._sizes.values()) for at in (0, 1))
        room = self._maps.room()
        return {"source_prefixes": (hashed, room[0]), "source_trie": (trie, room[1]), **self._maps.fill()}

    # ---- who is blocked

    def record(self, data: bytes) -> bool:
        """Take a record of the event ring. False when it is about something else."""
        if int.from_bytes(data[8:12], "little") != EVENT_BLOCKED:
            return False
        event = SourceEvent.unpack(data)
        if self._told.get(event.address) != event.blocked.since:
            self._tell(event.address, event.blocked, self._interface(event.ifindex), event.generation)
        return True

    def look(self) -> None:
        """Tell of blocks whose event found no room in the ring."""
        count = self._maps.counters()[SourceCounter.BLOCKS]
        if count == self._blocks:
            return
        self._blocks = count
        standing = dict(self._maps.blocks())
        self._told = {address: since for address, since in self._told.items() if address in standing}
        for address, block in standing.items():
            if block.since not in (self._told.get(address), self._inherited.get(address)):
                self._tell(address, block, "", 0)

    def _tell(self, address: bytes, block: Blocked, interface: str, generation: int) -> None:
        self._told[address] = block.since
        source = _source(address)
        scan = block.cause == Cause.SCAN
        seconds = round((block.expires - block.since) / _NS, 3)
        what = f"{block.ports} ports" if scan else f"{block.syns} SYNs, {block.unanswered} of them unanswered"
        word = "would be blocked" if block.observed else "is blocked"
        summary = f"{source} {word} for {seconds:g} s: {'scan' if scan else 'flood'} ({what})"
        rule = "scan_limit" if scan else "flood_limit"
        details = {
            "source": source, "cause": "scan" if scan else "flood", "ports": block.ports, "syns": block.syns,
            "unanswered": block.unanswered, "seconds": seconds, "observed": bool(block.observed),
            "interface": interface, "expires": self._wall(block.expires),
        }  # fmt: skip
        self._alert(
            Alert(time.time_ns(), Kind.VIOLATION, Severity.WARNING, summary, details, rule, generation=generation)
        )
        self._journal.note(
            "alert", kind=Kind.VIOLATION.value, severity=Severity.WARNING.value, summary=summary, rule=rule, **details
        )

    def _wall(self, monotonic: int) -> int:
        """Seconds since 1970 of a CLOCK_MONOTONIC time."""
        return round(time.time() + (monotonic - self._clock()) / _NS)

    def lift(self, text: str) -> list[str]:
        """End the blocks of an address, or of every source within a prefix. Return whom they were for."""
        try:
            wanted = ipaddress.ip_network(text, strict=False)
        except ValueError as error:
            raise UsageError(f"{text!r} is no address or prefix") from error
        lifted = []
        for address, block in self._maps.blocks():
            theirs = _network(address)
            if theirs.version == wanted.version and theirs.overlaps(wanted) and self._maps.lift(address):
                self._told.pop(address, None)
                if block.expires > self._clock():
                    lifted.append(str(_source(address)))
        return lifted

    def standing(self) -> list[dict[str, Any]]:
        """Return the blocks in force, the longest first, for a person."""
        now = self._clock()
        blocks = [(address, block) for address, block in self._maps.blocks() if block.expires > now]
        blocks.sort(key=lambda pair: -pair[1].expires)
        return [
            {
                "source": _source(address), "cause": "scan" if block.cause == Cause.SCAN else "flood",
                "seconds_left": round((block.expires - now) / _NS, 1), "dropped": block.dropped, "ports": block.ports,
                "syns": block.syns, "unanswered": block.unanswered, "observed": bool(block.observed),
            }
            for address, block in blocks
        ]  # fmt: skip

    def listing(self) -> list[dict[str, Any]]:
        """Return the blocks as `verdict list` shows what stands."""
        return [
            {
                "kind": "block", "word": "observe" if block["observed"] else "deny",
                "facts": {"source": block["source"]}, "seconds_left": block["seconds_left"],
                "reasons": [f"{block['cause']}_limit: {block['ports']} ports, {block['syns']} SYNs"],
            }
            for block in self.standing()
        ]  # fmt: skip

    def status(self) -> dict[str, Any]:
        """Return what `status` shows of sources."""
        blocks = self.standing()
        return {
            "blocked": len(blocks),
            "blocks": blocks[:_SHOWN],
            "tcp_flags": self._maps.flags(),
            "counters": {counter.name.lower(): value for counter, value in self._maps.counters().items()},
        }


def layout(number: int, rules: SourceRules) -> SourcePlan:
    """Decide where the prefixes of a generation stand: whole addresses and the lengths that hold the most of each
    family in the hash, the rest in the trie (docs/adr/0007-source-prefixes.md)."""
    counts: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    for version, length, count in (*rules.deny.counts(), *rules.allow.counts()):
        family, before = _FAMILIES[version]
        counts[family][8 * len(before) + length] += count
    hashed = tuple(_hashed(count) for count in counts)
    longest = [
        max((bits + 1 for bits in lengths if bits not in hashed[at]), default=0) for at, lengths in enumerate(counts)
    ]
    return SourcePlan(number, (hashed[0], hashed[1]), (longest[0], longest[1]), limits(rules.scan, rules.flood))


def sizes(rules: SourceRules) -> tuple[int, int]:
    """Return how many of the prefixes stand in the hash and how many in the trie."""
    hashed = layout(0, rules).hashed
    counts = [0, 0]
    for version, length, count in (*rules.deny.counts(), *rules.allow.counts()):
        family, before = _FAMILIES[version]
        counts[8 * len(before) + length not in hashed[family]] += count
    return counts[0], counts[1]


def _hashed(count: Counter[int]) -> tuple[int, ...]:
    whole = [128] if count[128] else []
    bulk = [bits for bits, prefixes in count.most_common() if bits != 128 and prefixes >= _BULK]
    return tuple(sorted((whole + bulk)[:LENGTHS], reverse=True))


def limits(scan: ScanLimit | None, flood: FloodLimit | None) -> Limits:
    """Return a policy's limits as the kernel has them."""
    return Limits(
        ports=scan.ports if scan else 0,
        syns=flood.syns if flood else 0,
        scan_ns=int(scan.seconds * _NS) if scan else 0,
        scan_block_ns=int(scan.block_seconds * _NS) if scan else 0,
        flood_ns=int(flood.seconds * _NS) if flood else 0,
        flood_block_ns=int(flood.block_seconds * _NS) if flood else 0,
    )


def _slices(prefixes: Prefixes) -> Iterator[list[tuple[int, int, bytes]]]:
    walk = iter(prefixes)
    while some := list(islice(walk, _SLICE)):
        yield some


def _network(address: bytes) -> Network:
    """Return whom a block's key means: of IPv6 the /64, but a link-local address alone."""
    one = net.from_key(address)
    if isinstance(one, ipaddress.IPv6Address) and not one.is_link_local:
        return ipaddress.IPv6Network((int(one), 64))
    return ipaddress.ip_network(one)


def _source(address: bytes) -> str:
    network = _network(address)
    return str(network.network_address if network.prefixlen == network.max_prefixlen else network)
