"""What the kernel programs cost by themselves: the verifier's work, and the XDP program over a million prefixes."""

from __future__ import annotations

import ctypes
import ipaddress
import os
import random
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache

from engine.abi.numbers import KernelVerdict, Present
from engine.abi.records import SourceKey
from engine.abi.source import PrefixKey, SourceEntry, SourcePlan
from engine.kernel import libbpf
from engine.kernel.bpf import load_program
from engine.kernel.gate import KernelGate
from engine.kernel.objects import Code
from engine.kernel.programs import XDP
from engine.kernel.sources import KernelSources
from engine.lab.errors import LabError
from engine.policy.sources import Prefixes, SourceRules
from engine.runtime.sources import layout
from tests.bench.figures import Goal, Row, at_most, median, quartiles
from tests.bench.filling import put_all, slab
from tests.bench.site import Site

SOURCE_PROGRAM = "gate_source"
PREFIXES = 1_000_000
VERIFIER = (
    "bpf_prog_info.verified_insns: the instructions that this kernel's verifier walked to accept the program; "
    "baseline: the program's own instructions as loaded. Another kernel's verifier walks another number."
)
XDP_METHOD = (
    f"BPF_PROG_TEST_RUN of the pinned {SOURCE_PROGRAM} on a TCP SYN of 54 bytes, {PREFIXES:,} IPv4 prefixes denied "
    "(two thirds /32, the rest /16 to /28), less the same call on a program that does nothing (baseline: that "
    "harness), taken in turns. warm: the kernel repeats one frame 100,000 times; ours: median of the rounds; spread: "
    "quartiles. cold: each call is another source and runs once, so that neither the entry nor the way to it is in "
    "any cache; ours: median of the calls; spread: quartiles. 'memory': growth of /proc/meminfo's Slab by prefix; "
    "baseline: key and value alone."
)
_NOTHING = bytes.fromhex("b7000000020000009500000000000000")
"""r0 = XDP_PASS; exit"""
_MAPPED = bytes(10) + b"\xff\xff"
_LENGTHS = (28, 28, 28, 24, 24, 24, 24, 22, 20, 19, 16)
_SAMPLE = 100_000
_XDP_DROP, _XDP_PASS = 1, 2
_ROUNDS = 15
_REPEAT = 100_000
_COLD = 4000


def verified(site: Site) -> list[Row]:
    rows = []
    for path in sorted(site.gate.pins.programs.iterdir()):
        fd = libbpf.obj_get(path)
        try:
            info = libbpf.program_info(fd)
        finally:
            os.close(fd)
        walked, own = int(info.verified_insns), int(info.xlated_prog_len) // 8
        rows.append(Row(f"verifier, {path.name}", "instructions", walked, own, walked / own, at_most(200_000.0)))
    return rows


def sources(site: Site, prefixes: int = PREFIXES) -> list[Row]:
    """Fill the source maps for the generation in force and run the program over them; leave them empty."""
    maps = site.gate.pins.maps
    gate, tables = KernelGate(maps), KernelSources(maps)
    config, number = gate.config(), gate.generation()
    denied = _prefixes(prefixes)
    # The engine's own choice of what stands where; a part of the list is enough to make it.
    some = tuple(ipaddress.IPv4Network((address, length)) for address, length in denied[:_SAMPLE])
    plan = layout(number, SourceRules(Prefixes.of(some)))
    program, nothing = libbpf.obj_get(site.gate.pins.programs / SOURCE_PROGRAM), _nothing()
    try:
        before = slab()
        put_all(maps / "source_prefixes", _entries(number, denied, plan, hashed=True))
        put_all(maps / "source_trie", _entries(number, denied, plan, hashed=False))
        took = slab() - before
        tables.set_plan(plan)
        gate.set_config(config._replace(present=config.present | Present.SOURCE))
        rows = _measured(program, nothing, denied)
    finally:
        gate.set_config(config)
        tables.set_plan(SourcePlan(number))
        tables.keep(frozenset())
        tables.close()
        gate.close()
        os.close(program)
        os.close(nothing)
    plain = len(PrefixKey(0, 0, bytes(16)).pack()) + len(SourceEntry(0, 0).pack())
    each = took / prefixes
    return [*rows, Row(f"XDP, {prefixes:,} prefixes, memory", "B per prefix", each, plain, each / plain, n=prefixes)]


def _prefixes(count: int) -> list[tuple[int, int]]:
    """Return (address, length) of IPv4 prefixes without host bits, each once; the same ones each time."""
    rng = random.Random(5)
    found: dict[tuple[int, int], None] = {}
    while len(found) < count:
        length = 32 if rng.random() < 2 / 3 else rng.choice(_LENGTHS)
        found[rng.randrange(1 << 24, 224 << 24) >> (32 - length) << (32 - length), length] = None
    return list(found)


def _entries(
    number: int, denied: Sequence[tuple[int, int]], plan: SourcePlan, *, hashed: bool
) -> Iterator[tuple[bytes, bytes]]:
    for address, length in denied:
        bits = 96 + length
        if (bits in plan.hashed[0]) == hashed:
            whole = _MAPPED + address.to_bytes(4, "big")
            key = PrefixKey(number, bits, whole).pack() if hashed else SourceKey(number, whole, bits).pack()
            yield key, SourceEntry(KernelVerdict.DENY, bits).pack()


def _nothing() -> int:
    return load_program(Code("nothing", _NOTHING, ()), XDP, 0, "GPL", {})


def _measured(program: int, nothing: int, denied: Sequence[tuple[int, int]]) -> list[Row]:
    rng = random.Random(9)
    known = [address + rng.randrange(1 << (32 - length)) for address, length in rng.sample(denied, _COLD)]
    # 225.0.0.0 and up: no prefix is there, so that these walk to the end and pass.
    other = [rng.randrange(225 << 24, 255 << 24) for _ in range(_COLD)]
    rows = []
    for name, addresses, action, goal in (("drop", known, _XDP_DROP, 100.0), ("pass", other, _XDP_PASS, None)):
        warm: list[float] = []
        harness: list[float] = []
        for number in range(_ROUNDS):
            warm.append(_run(program, _frame(addresses[number]), _REPEAT, action))
            harness.append(_run(nothing, _frame(addresses[number]), _REPEAT, _XDP_PASS))
        rows.append(_row(f"XDP {name}, {len(denied):,} prefixes, warm", warm, harness, at_most(goal) if goal else None))
        cold: list[float] = []
        empty: list[float] = []
        for address in addresses:
            cold.append(_run(program, _frame(address), 1, action))
            empty.append(_run(nothing, _frame(address), 1, _XDP_PASS))
        rows.append(_row(f"XDP {name}, {len(denied):,} prefixes, cold", cold, empty, None))
    return rows


def _row(name: str, ours: list[float], harness: list[float], goal: Goal | None) -> Row:
    less = median(harness)
    low, high = quartiles(ours)
    return Row(
        name, "ns", median(ours) - less, less, median(ours) / less, goal, len(ours), (low - less, high - less)
    )  # fmt: skip


def _frame(source: int) -> bytes:
    ethernet = bytes(12) + b"\x08\x00"
    ip = struct.pack("!BBHHHBBHII", 0x45, 0, 40, 0, 0, 64, 6, 0, source, 0xC6120001)
    return ethernet + ip + struct.pack("!HHIIBBHHH", 40000, 443, 1, 0, 0x50, 2, 65535, 0, 0)


class _TestRun(ctypes.Structure):
    """struct bpf_test_run_opts (libbpf 1.0)."""

    _fields_ = (
        ("sz", ctypes.c_size_t), ("data_in", ctypes.c_void_p), ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32), ("data_size_out", ctypes.c_uint32), ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p), ("ctx_size_in", ctypes.c_uint32), ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32), ("repeat", ctypes.c_int), ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32), ("cpu", ctypes.c_uint32), ("batch_size", ctypes.c_uint32),
    )  # fmt: skip


def _run(program: int, frame: bytes, repeat: int, action: int) -> float:
    """Run an XDP program on a frame; return the nanoseconds of one run. It must do what is expected of it."""
    given = ctypes.create_string_buffer(frame, len(frame))
    options = _TestRun(
        sz=ctypes.sizeof(_TestRun), data_in=ctypes.addressof(given), data_size_in=len(frame), repeat=repeat
    )  # fmt: skip
    if _library().bpf_prog_test_run_opts(program, ctypes.byref(options)) < 0:
        raise LabError(f"BPF_PROG_TEST_RUN: {os.strerror(ctypes.get_errno())}")
    if options.retval != action:
        raise LabError(f"The XDP program answers {options.retval} where {action} is right")
    return float(options.duration)


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    return ctypes.CDLL("libbpf.so.1", use_errno=True)
