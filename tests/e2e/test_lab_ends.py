"""Runs that are ended from outside: what a killed one leaves, the next one takes away."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engine.lab.scenarios import ALL
from tests.e2e.conftest import COMMAND, ROOT
from tests.e2e.residue import Residue

BUILDING = "lab: building"
FIRST, STARTED, ENFORCED = ALL[0].name, ALL[1].name, ALL[2].name


@contextmanager
def lab() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, "lab"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate()


def line_of(process: subprocess.Popen[str], start: str) -> str:
    """Read on until a line begins with these words, and return it."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith(start):
            return line
    pytest.fail(f"the lab ended before it said {start!r}:\n{''.join(seen)}")


@pytest.mark.parametrize("moment", [BUILDING, FIRST, ENFORCED])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_leaves_nothing(moment: str, number: signal.Signals) -> None:
    before = Residue.now()
    with lab() as process:
        line_of(process, moment)
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert Residue.now() == before


def test_what_a_killed_run_left_the_next_one_takes_away() -> None:
    before = Residue.now()
    with lab() as process:
        line_of(process, ENFORCED)
        process.kill()
        process.wait()
    # Else there would be nothing to prove: a gate without its lab stands, with all that belongs to it.
    left = Residue.now()
    assert left.processes > before.processes
    assert left.pins > before.pins
    assert left.groups > before.groups
    with lab() as process:
        assert " ok " in line_of(process, FIRST)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert Residue.now() == before


def test_a_second_run_leaves_the_first_one_alone() -> None:
    before = Residue.now()
    with lab() as first:
        line_of(first, STARTED)
        with lab() as second:
            assert " ok " in line_of(second, FIRST)
            second.send_signal(signal.SIGINT)
            second.communicate(timeout=60)
        assert " ok " in line_of(first, ENFORCED)
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=60)
    assert Residue.now() == before
