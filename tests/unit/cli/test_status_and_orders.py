"""`status`, `verdict` and `strategy`: what they ask the engine, what they print, how they end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.cli.main import main
from engine.cli.orders import seconds
from engine.errors import EngineAbsentError, UsageError

NOW = 1_800_000_000.0
STATUS: dict[str, Any] = {
    "state": "healthy", "problems": [], "version": "1", "pid": 7, "mode": "enforce",
    "generation": {"number": 3, "digest": "d" * 64, "commit": "", "dirty": False}, "policy": "/policies",
    "interfaces": {"eth0": {"ifindex": 2, "xdp": "native"}}, "cgroup": "/sys/fs/cgroup",
    "programs": {"gate_egress": {"id": 1, "instructions": 900, "verified": 40_000}},
    "maps": {"destinations": {"entries": 1, "max": 10}}, "evaluator": {"name": "embedded", "restarts": 0},
    "features": {"XDP": {"state": "active", "why": ""}}, "posture": {"engine_absent": "closed"},
    "sources": {
        "blocked": 1, "counters": {"blocks": 1, "spared": 0}, "tcp_flags": {"syn": 3, "fin": 0},
        "blocks": [
            {
                "source": "203.0.113.9", "cause": "scan", "seconds_left": 12.5, "dropped": 4, "ports": 100, "syns": 101,
                "unanswered": 99, "observed": False,
            }
        ],
    },
    "counters": {"held_connect": 5, "would_drop": 0}, "losses": {"lost_event": 0, "held_frames": 2},
    "audit": {"status": "open", "queued": 0, "durable": 9, "lost": 0, "head": 9, "key": "k"},
}  # fmt: skip


class Engine:
    """Answers instead of a real one, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Path, dict[str, Any]]] = []
        self.answer: Any = None
        self.error: Exception | None = None

    def __call__(self, state_dir: Path, request: dict[str, Any]) -> Any:
        self.asked.append((state_dir, request))
        if self.error is not None:
            raise self.error
        return self.answer


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine()
    monkeypatch.setattr("engine.cli.status.ask", engine)
    monkeypatch.setattr("engine.cli.orders.ask", engine)
    monkeypatch.setattr("time.time", lambda: NOW)
    return engine


# ---- status


@pytest.mark.parametrize(("state", "code"), [("healthy", 0), ("degraded", 1)])
def test_the_exit_code_says_how_the_engine_is(
    engine: Engine, state: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.answer = {**STATUS, "state": state, "problems": ["the map x is full"] if code else []}
    assert main(["status", "--json"]) == code
    assert json.loads(capsys.readouterr().out) == engine.answer
    assert main(["status"]) == code
    out = capsys.readouterr().out
    assert out.startswith(f"{state}: enforce, pid 7\n")
    assert ("the map x is full" in out) is bool(code)
    assert "held_connect" in out
    assert ["destinations", "1", "10", "10%"] in [line.split() for line in out.splitlines()]
    assert "would_drop" not in out
    assert "held_frames 2" in out


def test_an_absent_engine_is_3_and_json_where_a_program_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--state-dir", str(tmp_path)]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"sallyport: No engine answers for the state directory {tmp_path}")
    assert main(["status", "--json", "--state-dir", str(tmp_path)]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert answer["state"] == "absent"
    assert str(tmp_path) in answer["problems"][0]


def test_every_command_that_asks_ends_with_3_without_an_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ("verdict", "set", "--name", "a.example", "deny"), ("verdict", "clear", "--all"), ("verdict", "list"),
        ("strategy", "set", "--uid", "7", "ignore"), ("strategy", "clear", "--all"), ("strategy", "list", "--json"),
    ):  # fmt: skip
        assert main([*words, "--state-dir", str(tmp_path)]) == 3, words
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("sallyport: No engine answers")


# ---- what is asked


def order(**changes: Any) -> dict[str, Any]:
    return {"kind": "verdict", "by": "name", "value": "", "word": "deny", "port": 0, "transport": "", **changes}


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("verdict set --name *.example.net deny", order(value="*.example.net", reason="")),
        (
            "verdict set --dest 192.0.2.0/24 --port 443 --transport tcp reject --reason why",
            order(by="dest", value="192.0.2.0/24", word="reject", port=443, transport="tcp", reason="why"),
        ),
        ("verdict set --source 2001:db8::/32 deny", order(by="source", value="2001:db8::/32", reason="")),
        (
            "verdict set --name a.example allow --expires 10m",
            order(value="a.example", word="allow", reason="", expires=NOW + 600),
        ),
        ("strategy set --uid 0 observe", order(kind="strategy", by="uid", value="0", word="observe", reason="")),
        ("strategy set --port 22 ignore", order(kind="strategy", by="port", value="22", word="ignore", reason="")),
    ],
)
def test_a_setting_reaches_the_engine_as_it_was_given(
    engine: Engine, words: str, asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.answer = {"set": {"expires": 0, "reason": "", **asked}, "cut": 2}
    assert main([*words.split(), "--state-dir", str(tmp_path)]) == 0
    assert engine.asked == [(tmp_path, {"command": "set", "order": asked})]
    out = capsys.readouterr().out
    assert asked["value"] in out
    assert "2 flows in progress ended" in out


def test_clearing_one_and_all(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.answer = {"cleared": 1}
    assert main(["verdict", "clear", "--dest", "192.0.2.1", "--port", "53"]) == 0
    assert main(["strategy", "clear", "--all"]) == 0
    one, everything = (request for _, request in engine.asked)
    assert (one["order"]["value"], one["order"]["port"], "all" in one) == ("192.0.2.1", 53, False)
    assert everything == {"command": "clear", "kind": "strategy", "all": True}
    assert capsys.readouterr().out == "1 cleared\n1 cleared\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("verdict set deny", "Exactly one of --dest, --name, --source"),
        ("verdict set --dest 192.0.2.1 --name a.example deny", "Exactly one of"),
        ("verdict set --name a.example --port 443 deny", "--port and --transport go with --dest"),
        ("verdict set --dest 192.0.2.1 --transport tcp deny", "--transport goes with --port"),
        ("verdict set --dest 192.0.2.1 --port 0 deny", "0 is no port"),
        ("verdict set --dest 192.0.2.1 --port 65536 deny", "65536 is no port"),
        ("verdict set --name a.example deny --expires soon", "'soon' is no span of time"),
        ("verdict clear", "Exactly one of"),
        ("verdict clear --all --name a.example", "--all clears every one"),
        ("strategy set ignore", "Exactly one of --exe, --cgroup, --uid, --dest, --port"),
        ("strategy clear --all --uid 7", "--all clears every one"),
    ],
)
def test_what_is_not_clear_is_asked_of_nobody(
    engine: Engine, words: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"sallyport: {sentence}")
    assert engine.asked == []


def test_what_the_engine_refuses_ends_with_its_code(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.error = UsageError("'x' is no name", hint="Examples: *.example.com.")
    assert main(["verdict", "set", "--name", "x", "deny"]) == 2
    assert capsys.readouterr().err == "sallyport: 'x' is no name\n  Examples: *.example.com.\n"
    engine.error = EngineAbsentError("No engine answers")
    assert main(["verdict", "list"]) == 3


def test_a_list_shows_settings_and_the_policys_verdicts(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.answer = [
        order(by="dest", value="192.0.2.1/32", port=443, transport="tcp", expires=NOW + 60, reason="incident 812"),
        {
            "kind": "policy", "id": 4, "word": "allow", "facts": {"exe": "/usr/bin/curl", "name": "a.example"},
            "seconds_left": 4.5, "reasons": ["default: the policy's default is allow"],
        },
        {"kind": "policy", "id": 5, "word": "undecided", "facts": {}, "seconds_left": None, "reasons": []},
    ]  # fmt: skip
    assert main(["verdict", "list"]) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("deny      dest=192.0.2.1/32 port 443 tcp  [set by hand, until 20")
    assert first.endswith(": incident 812]")
    assert second.startswith("allow     exe=/usr/bin/curl name=a.example  [policy, 4.5 s left: default")
    assert third == "undecided everything  [policy: ]"
    assert main(["verdict", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == engine.answer
    engine.answer = []
    assert main(["strategy", "list"]) == 0
    assert capsys.readouterr().out == "no strategy stands\n"


def test_spans_of_time() -> None:
    assert [seconds(text) for text in ("30s", "10m", "2h", "1d")] == [30, 600, 7200, 86_400]
    for text in ("", "0m", "10", "m", "-5m", "1.5h", "10 m", "1w"):
        with pytest.raises(UsageError):
            seconds(text)
