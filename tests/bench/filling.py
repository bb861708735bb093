"""Names and addresses in the gate's maps, as a host has them that follows long lists; and what they take.

They are written into the maps directly, as a person's words (`verdict set`): by the command it would be hours. One of
each is set by the command, so that the programs look there at all.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from engine.abi.numbers import DestinationClass, KernelVerdict, NameClass
from engine.abi.records import DestinationKey, NameKey, VerdictEntry
from engine.kernel.maps import Map
from engine.lab.errors import LabError
from engine.model import net
from tests.bench.figures import Row
from tests.bench.site import Site

METHOD = (
    "how much /proc/meminfo's Slab grows while the map is filled, by the number of entries: what the kernel really "
    "takes, inner nodes and the rounding of its slabs included. Names are 24 to 26 bytes long; a key holds 200 "
    "whatever the name's length. baseline: the bytes of key and value alone."
)
_SLICE = 4096
_NUMBER = 1 << 30
"""Of the entries: beyond what an engine counts to in a benchmark."""
_DENY = VerdictEntry(KernelVerdict.DENY, _NUMBER).pack()


def names(site: Site, first: int, count: int) -> int:
    """Deny names number `first` and following; return the bytes of kernel memory that they took."""
    keys = (
        NameKey(NameClass.SET, _reversed(f"host{n:07d}.fill{n % 97:02d}.example")) for n in range(first, first + count)
    )
    return _filled(site.gate.pins.maps / "name_verdicts", (key.pack() for key in keys))


def _reversed(name: str) -> bytes:
    return name.encode()[::-1] + b"\0"


def addresses(site: Site, first: int, count: int) -> int:
    """Deny addresses number `first` and following, all of them elsewhere than the wires of the site; as `names`."""
    start = int(ipaddress.IPv4Address("100.64.0.0"))
    keys = (
        DestinationKey(DestinationClass.SET, 0, 0, net.to_key(ipaddress.IPv4Address(start + 7 * n)))
        for n in range(first, first + count)
    )
    return _filled(site.gate.pins.maps / "destinations", (key.pack() for key in keys))


def look_there(site: Site) -> None:
    """Have the programs look at both maps for every connection."""
    for words in (("--name", "fill.example"), ("--dest", "203.0.113.7/32")):
        done = site.gate.sallyport("verdict", "set", *words, "deny", "--reason", "benchmark")
        if done.code != 0:
            raise LabError(f"sallyport verdict set: {done.last_words}")


def row(name: str, map_path: Path, took: int, count: int) -> Row:
    """Return what an entry takes."""
    table = Map(map_path)
    plain = table.key_size + table.value_size
    table.close()
    each = took / count
    return Row(f"kernel memory per {name}, {count:,} of them", "B", each, plain, each / plain, n=count)


def put_all(path: Path, entries: Iterable[tuple[bytes, bytes]]) -> None:
    """Write entries into a pinned map, some thousand at a time."""
    table = Map(path)
    try:
        for some in _slices(iter(entries)):
            table.put_all(some)
    finally:
        table.close()


def _slices(entries: Iterator[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    while some := list(islice(entries, _SLICE)):
        yield some


def _filled(path: Path, keys: Iterable[bytes]) -> int:
    before = slab()
    put_all(path, ((key, _DENY) for key in keys))
    return slab() - before


def slab() -> int:
    """Return the bytes of the kernel's slabs."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Slab:"):
            return int(line.split()[1]) * 1024
    raise LabError("/proc/meminfo has no Slab")
