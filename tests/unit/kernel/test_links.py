"""Which interfaces a name or a pattern means."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from engine.errors import InterfaceError, KernelError
from engine.kernel.links import ETHERNET, LOOPBACK, KeeperProcess, Known, Link, is_pattern, matching, named, to_guard

TUNNEL = 65534
LINKS = [
    Link(1, "lo", LOOPBACK),
    Link(2, "eth0", ETHERNET),
    Link(3, "eth1", ETHERNET),
    Link(4, "veth0", ETHERNET),
    Link(5, "tun0", TUNNEL),
    Link(6, "hold-0a1b2c3d", ETHERNET),
    Link(7, "held-0a1b2c3d", ETHERNET),
    Link(8, "hold-up", ETHERNET),
]


def names(links: list[Link]) -> list[str]:
    return [link.name for link in links]


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["eth*"], ["eth0", "eth1"]),
        (["eth[0]"], ["eth0"]),
        (["?eth0"], ["veth0"]),
        (["ETH*"], []),
        (["*"], ["eth0", "eth1", "veth0", "tun0", "hold-up"]),
        (["h*"], ["hold-up"]),
        (["l?", "lo*"], []),
        ([], []),
    ],
)
def test_what_a_pattern_means(patterns: list[str], found: list[str]) -> None:
    assert names(matching(patterns, LINKS)) == found


@pytest.mark.parametrize(("word", "pattern"), [("eth0", False), ("eth*", True), ("eth?", True), ("eth[01]", True)])
def test_names_and_patterns_are_told_apart(word: str, pattern: bool) -> None:
    assert is_pattern(word) is pattern


def test_a_start_takes_every_name_and_what_fits_the_patterns_once() -> None:
    assert names(to_guard(["eth1", "eth*", "nothing*", "t*"], LINKS)) == ["eth1", "eth0"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("eth9", "There is no interface 'eth9'"),
        ("lo", "is the loopback"),
        ("tun0", r"no Ethernet header \(hardware type 65534\)"),
    ],
)
def test_a_name_that_cannot_be_guarded_is_refused(name: str, says: str) -> None:
    with pytest.raises(InterfaceError, match=says) as raised:
        named(name, LINKS)
    assert raised.value.hint


def test_the_refusal_of_a_missing_name_lists_what_is_there() -> None:
    with pytest.raises(InterfaceError) as raised:
        named("eth9", LINKS)
    assert "eth0, eth1" in raised.value.hint


def test_what_is_known_survives_the_way_to_the_child_and_back() -> None:
    known = Known(["eth0", "veth*"], ["docker0"], {2: "eth0"}, {5: ("tun0", "no Ethernet header")}, True, False)
    assert Known.read(json.loads(json.dumps(asdict(known)))) == known


def test_a_child_that_hangs_is_ended_and_the_next_one_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was known before stays known: nothing was looked at."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nread order; exec cat\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    known = Known(["eth0"], [], {2: "eth0"})

    async def look() -> None:
        process = KeeperProcess(tmp_path, known, patience=0.01)
        with pytest.raises(KernelError, match="does not answer"):
            await process.look()
        answer = {"known": asdict(known), "news": [], "lacking": {"eth0": "a foreign filter"}}
        program.write_text(f"#!/bin/sh\nread order; echo '{json.dumps(answer)}'\n")
        patient = KeeperProcess(tmp_path, known)
        assert await patient.look() == []
        assert patient.lacking == {"eth0": "a foreign filter"}
        program.write_text("#!/bin/sh\n")
        with pytest.raises(KernelError, match="without an answer"):
            await patient.look()
        assert patient.known == known
        await patient.end()
        with pytest.raises(KernelError, match="being stopped"):
            await patient.look()

    asyncio.run(look())
