"""The bypass suite on this machine: what is known to be open is open, and nothing else is.

A hole that opens fails here, and so does one that was closed: then docs/bypass.md is to be written anew.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from engine.selftest import table
from engine.selftest.attempt import Outcome
from engine.selftest.attempts import ALL
from tests.e2e.conftest import COMMAND, ENVIRONMENT, ROOT
from tests.e2e.residue import residue
from tests.e2e.test_selftest import run_name

OPEN = {
    # A program is its file: what runs in it, and to whom it gives its sockets, is its own affair.
    "executable mounted over",
    "interpreter",
    "LD_PRELOAD",
    "SCM_RIGHTS from the listed program",
    # With CAP_NET_RAW.
    "raw socket: acknowledgement",
    "packet socket past the qdisc",
    "packet socket: tag 0x9100",
    "packet socket: other type",
    "IGMP",
    "neighbour discovery",
}
SEEN = {
    "ECH",
    "DNS over HTTPS",
    "copied executable, denied by path",
    "namespace with another way out",
    "NAT64 form of an address",
    "answer to a denied address",
}
DEPENDS_ON_THE_MACHINE = {
    # kernel.io_uring_disabled, seccomp
    "io_uring: connect and send", "io_uring: hello", "io_uring: by the kernel's thread",
    "MPTCP", "MPTCP: hello",  # CONFIG_MPTCP
    "UDP-Lite",  # newer kernels have it no more
    "LD_PRELOAD",  # a C compiler
}  # fmt: skip


@pytest.fixture(scope="module")
def tried() -> dict[str, Any]:
    done = subprocess.run(
        [*COMMAND, "selftest", "bypass", "--json"], capture_output=True, text=True, check=False, cwd=ROOT, timeout=600,
        env=ENVIRONMENT,
    )  # fmt: skip
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    assert done.returncode == 1
    assert residue(run_name(done.stderr)) == []
    return {each["name"]: each for each in document["attempts"]}


@pytest.mark.parametrize("name", [attempt.name for attempt in ALL])
def test_outcome(tried: dict[str, Any], name: str) -> None:
    expected = "open" if name in OPEN else "seen" if name in SEEN else "blocked"
    told = f"{tried[name]['outcome']}: {tried[name]['observed']}"
    if name in DEPENDS_ON_THE_MACHINE and tried[name]["outcome"] == Outcome.NOT_HERE.value:
        # Said, with the kernel's own word for it.
        assert tried[name]["observed"].startswith("without a gate: ")
    else:
        assert tried[name]["outcome"] == expected, told


def test_every_result_has_its_reason_ready(tried: dict[str, Any]) -> None:
    rows = {attempt.name: attempt for attempt in ALL}
    for name, each in tried.items():
        if each["outcome"] != Outcome.NOT_HERE.value:
            assert Outcome(each["outcome"]) in rows[name].because, f"{name}: no reason for {each['outcome']}"


def test_the_table_in_the_documentation_has_every_attempt() -> None:
    text = (ROOT / "docs" / "bypass.md").read_text(encoding="utf-8")
    for attempt in ALL:
        assert table.row_start(attempt.name) in text, f"{attempt.name}: sallyport selftest bypass --markdown"


OBSERVING = """
from engine.lab.gate import Gate
from engine.selftest.attempts import ALL
from engine.selftest.bypass import run_bypass

start = Gate.start
Gate.start = lambda gate: start(gate, "observe")
chosen = [each for each in ALL if each.name in {NAMES}]
for each in run_bypass(chosen, begun=lambda name: None, told=lambda tried: None):
    print(each.attempt.name, each.outcome.value, sep=" = ")
"""


def test_what_is_blocked_gets_through_a_gate_that_only_observes() -> None:
    # Else the judge would call everything blocked.
    names = {
        "IPv6: connect and send", "UDP: sendto", "TCP Fast Open: hello in the SYN", "QUIC: scrambled",
        "older than the gate: hello", "fragments", "hello byte by byte", "another program", "SCTP",
        "namespace behind the gate", "TCP: simultaneous open", "hello out of order", "inbound: TCP",
        "inbound: QUIC scrambled",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-Bc", OBSERVING.replace("{NAMES}", repr(names))], capture_output=True, text=True, check=False,
        cwd=ROOT, timeout=300, env=ENVIRONMENT,
    )  # fmt: skip
    assert dict(line.split(" = ") for line in done.stdout.splitlines()) == dict.fromkeys(names, "open"), done.stderr
