"""The alert as a document: whatever bytes went in, JSON that every parser reads comes out."""

from __future__ import annotations

import json
import os

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from engine.alerts.alert import Alert, Kind, Severity
from engine.model.facts import NameState

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=20) | st.text(max_size=20)
    | st.binary(max_size=20).map(os.fsdecode),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def test_a_violation_reads_as_the_receiver_expects_it() -> None:
    alert = Alert(
        time=1_700_000_000_123_456_789,
        kind=Kind.VIOLATION,
        severity=Severity.WARNING,
        summary="curl may not reach evil.example",
        details={"dest": "192.0.2.1:443", "name": "evil.example", "exe": "/usr/bin/curl", "state": NameState.COMPLETE},
        rule="denied_names",
        generation=7,
        id="a1",
    )
    assert alert.document() == {
        "type": "sallyport.violation",
        "timestamp": "2023-11-14T22:13:20.123456789Z",
        "data": {
            "id": "a1",
            "kind": "violation",
            "severity": "warning",
            "summary": "curl may not reach evil.example",
            "rule": "denied_names",
            "generation": 7,
            "count": 1,
            "repeats": "",
            "lost_before": 0,
            "details": {
                "dest": "192.0.2.1:443",
                "name": "evil.example",
                "exe": "/usr/bin/curl",
                "state": "complete",
            },
        },
    }


def test_a_path_that_is_no_unicode_is_shown_by_its_bytes() -> None:
    alert = Alert(0, Kind.VIOLATION, Severity.INFO, "x", {"exe": os.fsdecode(b"/tmp/\xff"), "raw": b"\xfe"})
    assert alert.document()["data"]["details"] == {"exe": "/tmp/\\udcff", "raw": "\\xfe"}


def test_two_alerts_never_share_an_id() -> None:
    assert Alert(0, Kind.LOSS, Severity.INFO, "x").id != Alert(0, Kind.LOSS, Severity.INFO, "x").id


@given(st.dictionaries(st.text(max_size=5), ANYTHING, max_size=4), st.text())
def test_whatever_the_details_are_a_strict_parser_reads_them(details: dict[str, object], summary: str) -> None:
    text = json.dumps(Alert(0, Kind.LOSS, Severity.INFO, summary, details).document(), allow_nan=False)
    assert json.loads(text)["type"] == "sallyport.loss"
    text.encode("utf-8")
    if not any(abs(number) >= 2**63 for number in _integers(details)):
        msgspec.json.decode(text)


def _integers(value: object) -> list[int]:
    if isinstance(value, int):
        return [value]
    if isinstance(value, dict):
        return [number for inner in value.values() for number in _integers(inner)]
    if isinstance(value, list):
        return [number for inner in value for number in _integers(inner)]
    return []
