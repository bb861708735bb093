"""The log as scenarios read it, while it is being written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.lab.log import Entry, entries


def test_a_line_that_is_being_written_is_not_an_entry_yet(tmp_path: Path) -> None:
    log = tmp_path / "audit" / "log"
    log.mkdir(parents=True)
    (log / f"{1:020}.jsonl").write_text('{"type": "stop", "seq": 1}\n{"type": "st')
    (log / f"{0:020}.jsonl").write_text('{"type": "start", "seq": 0}\n')
    assert [entry.type for entry in entries(tmp_path)] == ["start", "stop"]


def test_no_log_is_no_entries(tmp_path: Path) -> None:
    assert list(entries(tmp_path)) == []


def test_an_entry_says_what_it_is_about() -> None:
    own: dict[str, Any] = {"reasons": [{"rule": "denied_names", "message": "no"}], "ignored": True, "would": "deny"}
    body = {"dst_endpoint": {"hostname": "a.example"}, "unmapped": own}
    entry = Entry(json.loads(json.dumps({"type": "flow", "ocsf": body})))
    assert (entry.name, entry.rules, entry.ignored, entry.would) == (
        "a.example", ["denied_names"], True, "deny",
    )  # fmt: skip


@pytest.mark.parametrize(("number", "direction"), [(1, "ingress"), (2, "egress"), (0, "")])
def test_an_entry_says_where_from_and_what_became_of_it(number: int, direction: str) -> None:
    body = {
        "connection_info": {"direction_id": number}, "src_endpoint": {"ip": "192.0.2.1"},
        "unmapped": {"verdict": "reject"},
    }  # fmt: skip
    entry = Entry({"type": "decision", "ocsf": body})
    assert (entry.direction, entry.source, entry.verdict) == (direction, "192.0.2.1", "reject")


def test_an_entry_about_no_flow_says_so() -> None:
    entry = Entry({"type": "start", "detail": {}})
    assert (entry.name, entry.rules, entry.ignored, entry.would) == ("", [], False, "")
    assert (entry.direction, entry.source, entry.verdict) == ("", "", "")
