"""A writer that is killed loses nothing that it acknowledged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
HARNESS = Path(__file__).with_name("killing.py")


def test_thirty_kills_lose_no_acknowledged_entry(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(HARNESS), str(tmp_path / "state"), "30"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    said = json.loads(run.stdout)
    assert said["kills"] == 30
    assert said["runs_that_lost_an_acknowledged_entry"] == 0
    assert said["order"] == ""
    assert said["verified"] is True
    assert said["entries"] > 300, "the writers must have been at work when they were killed"
