"""The bypass table: nothing is hidden, and what is open comes first."""

from __future__ import annotations

from engine.selftest import table
from engine.selftest.attempt import Attempt, Outcome, Tried

ABOUT = ("6.1.0", "x86_64", "1.2")


def tried(name: str, outcome: Outcome, **how: str) -> Tried:
    attempt = Attempt(name, "a token | somewhere", lambda _chance: None, {Outcome.BLOCKED: "Because."}, **how)  # type: ignore[arg-type]
    return Tried(attempt, outcome, "what was observed")


DONE = [
    tried("one", Outcome.BLOCKED),
    tried("two", Outcome.OPEN, needs="CAP_NET_RAW"),
    tried("three", Outcome.SEEN),
    tried("four", Outcome.NOT_HERE),
]


def test_an_outcome_without_a_reason_shows_what_was_observed() -> None:
    assert [each.reason for each in DONE] == ["Because.", *["what was observed"] * 3]


def test_markdown_has_every_attempt_with_what_is_open_first() -> None:
    text = table.markdown(DONE, *ABOUT)
    assert "**Linux 6.1.0** (x86_64), version 1.2" in text
    assert "1 blocked, 1 seen, 1 open, 1 not here." in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| attempt")]
    assert rows == [
        "| two | CAP_NET_RAW | a token \\| somewhere | **OPEN** | what was observed |",
        "| three |  | a token \\| somewhere | **seen** | what was observed |",
        "| four |  | a token \\| somewhere | not here | what was observed |",
        "| one |  | a token \\| somewhere | blocked | Because. |",
    ]
    assert text.index("## Open") < text.index("## Seen") < text.index("## Not here") < text.index("## Blocked")


def test_json_has_every_attempt_in_the_order_of_the_suite() -> None:
    document = table.document(DONE, *ABOUT)
    assert document["counts"] == {"blocked": 1, "seen": 1, "open": 1, "not here": 1}
    assert [each["name"] for each in document["attempts"]] == ["one", "two", "three", "four"]
    assert document["attempts"][1] == {
        "name": "two", "tries": "a token | somewhere", "where": "guarded", "needs": "CAP_NET_RAW", "outcome": "open",
        "reason": "what was observed", "observed": "what was observed",
    }  # fmt: skip


def test_text_wraps_and_names_every_outcome() -> None:
    lines = table.text(DONE, 100).splitlines()
    assert [line.split()[:2] for line in lines if not line.startswith(" ")] == [
        ["one", "blocked"], ["two", "open"], ["three", "seen"], ["four", "not"],
    ]  # fmt: skip
    assert max(map(len, lines)) <= 100


def test_what_is_not_blocked_is_told_with_what_was_observed() -> None:
    assert table.line(DONE[0], 5) == "one   blocked"
    assert table.line(DONE[1], 5) == "two   open\n  what was observed"
