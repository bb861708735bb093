"""`sallyport selftest` on this machine: the proofs, their signature, and that nothing is left."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from audit import keys
from engine.lab.gate import Since
from engine.selftest.rig import HELD, STOPPED, open_rig
from tests.e2e.conftest import COMMAND, ENVIRONMENT, ROOT
from tests.e2e.residue import residue

BUILDING = re.compile(r"^selftest ([0-9a-f]{8}): building", re.MULTILINE)
PROOFS = {
    "without a gate everything arrives",
    "the engine starts",
    "a denied connection is denied",
    "an allowed connection passes",
    "a denied name is denied",
    "an unseen name is held",
    "it holds with the engine killed",
}


def run_name(progress: str) -> str:
    found = BUILDING.search(progress)
    assert found, progress
    return found[1]


def sallyport(*words: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, check=False, cwd=ROOT, timeout=seconds, env=ENVIRONMENT
    )


def test_every_proof_holds_and_is_signed_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    keys.create(tmp_path / "audit", "sallyport/host/1")
    note = tmp_path / "note"
    done = sallyport("selftest", "--json", "--sign-with", str(tmp_path), "--note", str(note))
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    assert {each["name"]: each["observed"] for each in document["proofs"] if not each["passed"]} == {}
    assert {each["name"] for each in document["proofs"]} == PROOFS
    assert done.returncode == 0
    assert note.read_text() == document["note"]
    checked = sallyport("selftest", "verify", str(note), "--state-dir", str(tmp_path))
    assert checked.returncode == 0, checked.stderr
    assert residue(run_name(done.stderr)) == []


OBSERVING = """
from engine.lab.gate import Gate
from engine.selftest.proofs import run_proofs

start = Gate.start
Gate.start = lambda gate: start(gate, "observe")
run_proofs(begun=lambda name: None, told=lambda each: print(each.name, each.passed, sep=": "))
"""


def test_a_gate_that_only_observes_does_not_pass_for_one_that_denies() -> None:
    # With no gate in the way every proof but the first two would be a claim.
    done = subprocess.run(
        [sys.executable, "-Bc", OBSERVING], capture_output=True, text=True, check=False, cwd=ROOT, timeout=300,
        env=ENVIRONMENT,
    )  # fmt: skip
    told = dict(line.split(": ") for line in done.stdout.splitlines())
    assert set(told) == PROOFS, done.stderr
    assert {name for name, passed in told.items() if passed == "True"} == {"without a gate everything arrives"}


def test_a_gate_at_work_beside_it_is_left_alone() -> None:
    with open_rig(1, lambda _name: None) as beside:
        beside.gate.start()
        beside.settle()
        since = Since(beside.gate)
        done = sallyport("selftest", "--json")
        assert json.loads(done.stdout)["passed"], done.stderr
        # Its own ARP aside: nothing of the other's was held, stopped or refused here.
        assert since.grown(*HELD, *STOPPED) == 0
        assert beside.gate.status()["state"] == "healthy"


@pytest.mark.parametrize(
    ("words", "moment", "number"),
    [
        (["selftest"], "building", signal.SIGINT),
        (["selftest"], "the engine starts", signal.SIGTERM),
        # The first attempt that was judged: an engine is there, and clients that wait for it.
        (["selftest", "bypass"], "IPv6: connect and send", signal.SIGINT),
    ],
)
def test_a_signal_leaves_nothing(words: list[str], moment: str, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=ENVIRONMENT,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if moment in line:
            break
    process.send_signal(number)
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, said + rest
    assert residue(run_name(said)) == []
