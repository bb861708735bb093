"""The lab's policy, as it is at first and as it becomes: one that the engine would refuse is found without root."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.cli import policy
from engine.lab.place import Place
from engine.lab.policy import PolicyFolder
from engine.lab.rules import RULES


@pytest.fixture
def folder(tmp_path: Path) -> PolicyFolder:
    assert shutil.which("git")
    # Any folder passes for a control group: a process id is written into a file there.
    (tmp_path / "group").mkdir()
    return PolicyFolder(tmp_path / "policy", "/usr/bin/curl", Place(tmp_path / "group"))


def checked(folder: PolicyFolder, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    policy.register(parser.add_subparsers())
    args = parser.parse_args(["policy", "check", str(folder.folder), "--json"])
    code = args.handler(args)
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == 0, document
    return document


def test_it_is_good_at_first_and_when_it_says_more(folder: PolicyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    before = {rule["name"] for rule in checked(folder, capsys)["rules"]}
    folder.widen()
    after = {rule["name"] for rule in checked(folder, capsys)["rules"]}
    assert after == before | {name for name in RULES if name.startswith("lab_")}
    # An engine that watches must never see a half of it.
    assert {path.name for path in folder.folder.glob("*lab*")} == {"lab"}
