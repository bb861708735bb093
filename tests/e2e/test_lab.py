"""The lab's scenarios, and that they leave nothing behind."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from engine.lab.scenarios import ALL
from tests.e2e.conftest import COMMAND, ENVIRONMENT, ROOT, Run
from tests.e2e.residue import residue


def sallyport(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60,
        env=ENVIRONMENT,
    )  # fmt: skip


@pytest.mark.parametrize("name", [scenario.name for scenario in ALL])
def test_scenario(played: Run, name: str) -> None:
    results = {each["name"]: each for each in played.document["scenarios"]}
    assert results[name]["passed"], f"expected: {results[name]['expected']}\nobserved: {results[name]['observed']}"


def test_the_run_as_a_whole_passes(played: Run) -> None:
    assert played.document["passed"], played.progress
    assert played.code == 0


def test_every_scenario_was_told_as_it_was_played(played: Run) -> None:
    assert [line for line in played.progress.splitlines() if line.endswith(" ms")] != []
    assert all(scenario.name in played.progress for scenario in ALL)


def test_the_log_stays_where_it_was_asked_for(played: Run) -> None:
    checked = sallyport("audit", "verify", "--json", "--state-dir", str(played.state_dir))
    assert checked.returncode == 0, checked.stdout
    assert json.loads(checked.stdout)["entries"] == played.document["verify"]["entries"] > 0


def test_nothing_is_left(played: Run) -> None:
    assert residue(played.name, played.state_dir) == []


def test_a_state_directory_of_a_running_engine_is_refused(tmp_path: Path) -> None:
    # At its end the lab takes the gate of its state directory down: here that would be somebody else's.
    from engine.kernel.pins import Pins, Record

    pins = Pins.of(tmp_path)
    Record(pins.instance, str(tmp_path), 0).write(pins.record)
    try:
        refused = sallyport("lab", "--state-dir", str(tmp_path))
        assert (refused.returncode, pins.record.exists()) == (1, True)
        assert "engine is at work" in refused.stderr
    finally:
        pins.record.unlink()
