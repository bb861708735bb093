"""The lab is played once; every test looks at that one run, or ends a run of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-B", "-m", "engine.cli.main")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True)
class Run:
    """One run of `sallyport lab --json`."""

    name: str
    code: int
    document: dict[str, Any]
    progress: str
    state_dir: Path


def run_name(progress: str) -> str:
    """The name of a run, from the first line that it says."""
    found = re.search(r"^lab ([0-9a-f]{8}): building", progress, re.MULTILINE)
    assert found, progress
    return found[1]


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory) -> Run:
    state_dir = tmp_path_factory.mktemp("lab") / "state"
    done = subprocess.run(
        [*COMMAND, "lab", "--json", "--state-dir", str(state_dir)],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=300, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return Run(run_name(done.stderr), done.returncode, json.loads(done.stdout), done.stderr, state_dir)
