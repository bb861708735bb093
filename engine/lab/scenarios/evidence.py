"""The signed log of all this, checked as an auditor would."""

from __future__ import annotations

import shutil

from engine.lab.gate import COMMAND
from engine.lab.lab import Lab
from engine.lab.scenario import Scenario, Sight


def _verified(lab: Lab, saw: Sight) -> None:
    done = lab.gate.sallyport("audit", "verify")
    saw(done.code == 0, f"exit {done.code}: {done.last_words}")
    kinds = {entry.type for entry in lab.gate.entries()}
    wanted = {"start", "decision", "flow", "policy", "alert", "stop"}
    saw(kinds >= wanted, f"it holds {', '.join(sorted(kinds))}")


def _flipped(lab: Lab, saw: Sight) -> None:
    copy = lab.plan.work / "copy"
    shutil.copytree(lab.plan.state / "audit", copy / "audit")
    segment = min((copy / "audit" / "log").glob("*.jsonl"))
    data = bytearray(segment.read_bytes())
    # In the middle of the file, inside a word: the line stays JSON, and only its hash can tell.
    at = data.index(b'"ocsf"', len(data) // 2) + 2
    data[at] ^= 1
    segment.write_bytes(data)
    done = lab.tools.run([*COMMAND, "audit", "verify", "--state-dir", str(copy)], seconds=120)
    findings = [line for line in done.out.splitlines() if line.startswith("FINDING")]
    saw(done.code == 1 and bool(findings), f"byte {at}: exit {done.code}, {findings[0] if findings else 'no finding'}")
    shutil.rmtree(copy)


SCENARIOS = (
    Scenario("audit verify passes", "exit 0 over the log of all the above", _verified, enforcing=False),
    Scenario("one flipped byte is found", "exit 1 and a finding", _flipped, enforcing=False),
)
