"""The table loses nothing of what was seen, however narrow it is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.lab.report import closing, line, table, verified
from engine.lab.scenario import Result

WORDS = st.lists(st.text("abcdefgh", min_size=1, max_size=90), min_size=1, max_size=12).map(" ".join)


def result(*, passed: bool = True, observed: str = "seen") -> Result:
    return Result("a name", "what should be", observed, passed, 12)


@given(observed=WORDS, columns=st.integers(20, 240))
def test_the_table_shows_every_letter_that_was_observed(observed: str, columns: int) -> None:
    rows = table([Result("", "", observed, True, 1)], columns).splitlines()[2:]
    shown = "".join(row[68:].replace(" ok", "") if at == 0 else row[68:] for at, row in enumerate(rows))
    assert shown.replace(" ", "") == observed.replace(" ", "")


def test_a_failure_cannot_be_overlooked() -> None:
    failed = result(passed=False)
    assert line(failed, 10).splitlines() == ["a name     FAILED     12 ms", "  seen"]
    assert "FAILED" in table([result(), failed], 120)
    assert "FAILED" not in table([result()], 120)
    assert closing([result(), failed], 1.0) == "1 of 2 scenarios passed in 1.0 s"


def test_the_verification_is_told_with_its_findings() -> None:
    report = {"ok": True, "entries": 7, "heads": 2, "vouched": {"size": 7}, "findings": []}
    assert verified(report) == "audit verify: good; 7 entries, 2 signed heads, vouched for 7"
    broken = report | {"ok": False, "vouched": None, "findings": ["a flaw"]}
    assert verified(broken).splitlines() == [
        "audit verify: NOT GOOD; 7 entries, 2 signed heads, vouched for 0",
        "  a flaw",
    ]


def test_no_verification_is_not_a_good_one() -> None:
    assert verified({"ok": False, "error": "it did not run"}) == "audit verify: NOT GOOD: it did not run"
