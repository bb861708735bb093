"""The engine is killed, started again and replaced by another build while connections never stop: no denied packet gets
through at any moment, and no allowed connection hears of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.abi.numbers import Counter
from engine.kernel import libbpf
from engine.kernel.maps import PerCpuMap
from tests.kernel.host import Host, awaited
from tests.kernel.lab import ROOT
from tests.kernel.load import load

ROUNDS = 300
"""Allowed connections, and denied attempts of each kind, before and after every turn of events."""


@pytest.fixture(scope="module")
def _host() -> Iterator[Host]:
    host = Host()
    try:
        host.start()
        yield host
    finally:
        host.close()


@pytest.fixture
def host(_host: Host) -> Iterator[Host]:
    yield _host
    _host.dismiss()


def counter(host: Host, which: Counter) -> int:
    counters = PerCpuMap(host.pins.maps / "counters")
    try:
        return counters.sums()[which]
    finally:
        counters.close()


def tag(host: Host, program: str) -> bytes:
    """What tells one build of a program from another: the kernel's digest of its instructions."""
    fd = libbpf.obj_get(host.pins.programs / program)
    try:
        return bytes(libbpf.program_info(fd).tag)
    finally:
        os.close(fd)


def test_killed_and_started_again(host: Host) -> None:
    with load(host) as running:
        running.more(ROUNDS)
        absent = counter(host, Counter.DROPPED_ENGINE_ABSENT)
        host.engine.kill()
        running.more(ROUNDS)
        # Until its heartbeat is stale the unseen wait for it; from then on they are dropped.
        awaited(lambda: counter(host, Counter.DROPPED_ENGINE_ABSENT) > absent, host.engine.told)
        running.more(ROUNDS)
        assert running.arrived() == []
        host.start()
        running.more(ROUNDS)
        assert running.stop() >= 4 * ROUNDS
        assert running.arrived() == []
    assert host.engine.status()["state"] == "healthy"


def test_killed_again_and_again_while_it_starts(host: Host) -> None:
    """The loader goes on to its end by itself, or does not: whatever it has replaced by then, nothing leaks."""
    with load(host) as running:
        for _ in range(3):
            engine = host.begin()
            running.more(ROUNDS // 3)
            engine.kill()
        host.start()
        running.more(ROUNDS)
        running.stop()
        assert running.arrived() == []


def test_replaced_by_another_build_of_the_programs(host: Host, tmp_path: Path) -> None:
    """As a new release does it: the old engine leaves its gate attached, the new one replaces the programs in place."""
    for folder in ("engine", "audit", "bpf"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    source = tmp_path / "bpf/gate.c"
    text = source.read_text()
    head = "int gate_egress(struct __sk_buff *skb)\n{\n"
    assert text.count(head) == 1
    source.write_text(text.replace(head, f"{head}\tif (skb->len == 0xffffffff)\n\t\treturn TC_ACT_SHOT;\n"))
    host.start(leave_attached=True)
    before = tag(host, "gate_egress")
    with load(host) as running:
        running.more(ROUNDS)
        assert host.engine.stop() == 0
        host.start(root=tmp_path)
        running.more(ROUNDS)
        after = tag(host, "gate_egress")
        assert host.engine.status()["state"] == "healthy"
        host.engine.kill()
        host.start()
        running.more(ROUNDS)
        running.stop()
        assert running.arrived() == []
    assert after != before
    assert tag(host, "gate_egress") == before
