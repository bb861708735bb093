"""A terminal that shows what attackers chose, and does nothing that they ask of it."""

from __future__ import annotations

import asyncio
import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.alerts.alert import Alert, Kind, Severity
from engine.alerts.sink import UndeliverableError
from engine.alerts.terminal import LINE_BYTES, TerminalSink, escape, line


def alert(**changes: object) -> Alert:
    values: dict[str, object] = {
        "time": 1_700_000_000_123_456_789,
        "kind": Kind.VIOLATION,
        "severity": Severity.CRITICAL,
        "summary": "curl may not reach evil.example",
        "details": {"name": "evil.example", "port": 443},
        "rule": "denied_names",
        "generation": 7,
    }
    return Alert(**{**values, **changes})  # type: ignore[arg-type]


async def shown(sink: TerminalSink, reader: int, *alerts: Alert) -> str:
    for one in alerts:
        await sink.deliver(one)
    await sink.close()
    return os.read(reader, 65536).decode()


def test_an_alert_is_one_line_with_everything_in_it() -> None:
    assert line(alert(), colour=False) == (
        "2023-11-14T22:13:20.123Z CRITICAL violation: curl may not reach evil.example "
        "rule=denied_names generation=7 name=evil.example port=443\n"
    )
    counted = line(alert(count=12, repeats="a", lost_before=3), colour=False)
    assert "(12 more)" in counted
    assert "[3 alerts before this one were lost]" in counted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("a\nFAKE LINE", "a\\x0aFAKE LINE"),
        ("\x9b31m", "\\x9b31m"),
        ("\x7f", "\\x7f"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\u2066x\u2069", "\\u2066x\\u2069"),
        ("pay\u200bpal", "pay\\u200bpal"),
        ("\ufeff", "\\ufeff"),
        ("a\u3164b", "a\\u3164b"),
        ("a\ufe0fb", "a\\ufe0fb"),
        ("\U000e0041", "\\U000e0041"),
        ("\u2028", "\\u2028"),
        ("\udc80", "\\udc80"),
        ("\\x1b", "\\\\x1b"),
        ("bücher.example", "bücher.example"),
    ],
)
def test_what_is_not_plainly_visible_is_written_as_its_code(text: str, expected: str) -> None:
    assert escape(text) == expected


@given(st.text(), st.text(), st.text(), st.dictionaries(st.text(), st.text() | st.lists(st.text())))
def test_no_text_of_an_attacker_gets_a_control_character_or_a_second_line_through(
    summary: str, rule: str, name: str, more: dict[str, object]
) -> None:
    text = line(alert(summary=summary, rule=rule, details={"name": name, **more}), colour=False)
    assert text.endswith("\n")
    assert not [c for c in text[:-1] if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")]
    assert len(text.encode()) <= LINE_BYTES


def test_a_line_is_never_longer_than_what_a_pipe_writes_in_one_piece() -> None:
    text = line(alert(summary="ü" * 10000), colour=False)
    assert len(text.encode()) <= LINE_BYTES
    assert text.endswith(" ...\n")


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colours_on_a_terminal_only_and_not_against_ones_wish(environment: dict[str, str], coloured: bool) -> None:
    master, slave = os.openpty()
    try:
        text = asyncio.run(shown(TerminalSink(slave, environment=environment), master, alert()))
    finally:
        os.close(master)
        os.close(slave)
    assert ("\x1b[1;31m" in text) is coloured


def test_no_colours_in_a_pipe_and_lines_in_order() -> None:
    reader, writer = os.pipe()
    alerts = [alert(summary=f"number {number}") for number in range(50)]
    try:
        text = asyncio.run(shown(TerminalSink(writer, environment={"TERM": "xterm"}), reader, *alerts))
    finally:
        os.close(reader)
        os.close(writer)
    assert "\x1b" not in text
    assert [row.split("number ")[1].split()[0] for row in text.splitlines()] == [str(n) for n in range(50)]


def test_a_terminal_that_is_gone_is_said_to_be_gone() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        with pytest.raises(UndeliverableError, match="Broken pipe"):
            asyncio.run(TerminalSink(writer).deliver(alert()))
    finally:
        os.close(writer)
