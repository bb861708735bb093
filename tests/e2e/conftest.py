"""The lab is played once; every test looks at that one run, or ends a run of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.residue import Residue

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-B", "-m", "engine.cli.main")


@dataclass(frozen=True)
class Run:
    """One run of `sallyport lab --json`, and the machine before and after it."""

    code: int
    document: dict[str, Any]
    progress: str
    state_dir: Path
    before: Residue
    after: Residue


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory) -> Run:
    state_dir = tmp_path_factory.mktemp("lab") / "state"
    before = Residue.now()
    done = subprocess.run(
        [*COMMAND, "lab", "--json", "--state-dir", str(state_dir)],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout, done.stderr
    return Run(done.returncode, json.loads(done.stdout), done.stderr, state_dir, before, Residue.now())
