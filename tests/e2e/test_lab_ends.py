"""Runs that are ended from outside: what a killed one leaves, the next one takes away."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engine.lab.scenarios import ALL
from engine.lab.waiting import until
from tests.e2e.conftest import COMMAND, ENVIRONMENT, ROOT, run_name
from tests.e2e.residue import loaded, pinned_programs, pins_of, residue

BUILDING = "lab "
FIRST, STARTED, ENFORCED = ALL[0].name, ALL[1].name, ALL[2].name


class Lab:
    """A run of `sallyport lab` whose output is read line by line."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "lab"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=ENVIRONMENT,
            start_new_session=True,
        )  # fmt: skip
        self.name = run_name(self.line(BUILDING))

    def line(self, start: str) -> str:
        """Read on until a line begins with these words, and return it."""
        assert self.process.stdout is not None
        seen = []
        for line in self.process.stdout:
            seen.append(line)
            if line.startswith(start):
                return line
        pytest.fail(f"the lab ended before it said {start!r}:\n{''.join(seen)}")

    def passes(self, name: str) -> None:
        """Read on until this scenario has been played, and see that it passed."""
        assert self.process.stdout is not None
        assert " ok " in self.line(name), self.process.stdout.readline()

    def end(self, number: signal.Signals) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        self.process.communicate(timeout=60)
        return self.process.returncode


@contextmanager
def lab() -> Iterator[Lab]:
    run = Lab()
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.end(signal.SIGTERM)


@pytest.mark.parametrize("moment", [BUILDING, FIRST, ENFORCED])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_leaves_nothing(moment: str, number: signal.Signals) -> None:
    with lab() as run:
        if moment is not BUILDING:
            run.line(moment)
        assert run.end(number) == 128 + number
    assert residue(run.name) == []


def test_what_a_killed_run_left_the_next_one_takes_away() -> None:
    with lab() as killed:
        killed.line(ENFORCED)
        killed.end(signal.SIGKILL)
    # Else there would be nothing to prove: a gate without its lab stands, with all that belongs to it.
    kinds = {each.split()[0] for each in residue(killed.name)}
    assert kinds == {"group", "file", "pin", "process", "namespace"}
    programs = pinned_programs(pins_of(killed.name))
    assert programs
    assert all(map(loaded, programs))
    with lab() as following:
        assert residue(killed.name) == []
        # The kernel frees programs a moment after their last user is gone.
        assert until(lambda: not any(map(loaded, programs)))
        following.passes(FIRST)
        following.end(signal.SIGINT)
    assert residue(following.name) == []


@pytest.mark.parametrize("moment", [BUILDING, FIRST])
def test_a_run_that_is_killed_before_it_enforces_is_taken_away_too(moment: str) -> None:
    with lab() as killed:
        if moment is not BUILDING:
            killed.line(moment)
        killed.end(signal.SIGKILL)
    assert residue(killed.name) != []
    with lab() as following:
        assert residue(killed.name) == []
        following.end(signal.SIGINT)
    assert residue(following.name) == []


def test_a_second_run_leaves_the_first_one_alone() -> None:
    with lab() as first:
        first.line(STARTED)
        with lab() as second:
            second.passes(FIRST)
            second.end(signal.SIGINT)
        first.passes(ENFORCED)
        first.end(signal.SIGINT)
    assert residue(first.name) == residue(second.name) == []


BPFFS_WATCH = """
import os
from engine.lab.play import run_lab
from engine.lab.scenarios import ALL

def mounted():
    return os.path.ismount("/sys/fs/bpf")

seen = [mounted()]
run_lab(ALL[:2], None, begun=lambda name: None, told=lambda result: seen.append(result.passed and mounted() or result))
print(seen, mounted())
"""


def test_bpffs_is_mounted_for_the_run_alone() -> None:
    # In a mount namespace of its own, so that the machine's bpffs stays where it is.
    without = 'umount --recursive /sys/fs/bpf; exec "$@"'
    words = ["unshare", "--mount", "--", "sh", "-c", without, "sh", COMMAND[0], "-Bc", BPFFS_WATCH]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT, env=ENVIRONMENT, timeout=120)
    assert done.stdout == "[False, True, True] False\n", done.stderr
