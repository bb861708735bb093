"""`sallyport inspect`, as a user meets it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from engine.cli import inspect
from engine.errors import InputError, SallyportError
from engine.model.decision import Decision, Reason, Stage, Verdict
from engine.model.facts import Event, Facts
from tests.support import captures as build
from tests.support import hello, initials


def command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    inspect.register(parser.add_subparsers())
    args = parser.parse_args(["inspect", *words])
    code: int = args.handler(args)
    return code


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    frames = build.connection([b"EHLO x\r\n", hello.client_hello("late.example", alpn=("h2",))], dport=25)
    frames += build.connection([hello.client_hello(None)], sport=40_001)
    frames += build.connection([hello.client_hello(b"\x1b[2J\x7f\xe2\x80\xae\xff")], sport=40_002)
    frames += [build.udp_frame(one) for one in initials.flight(hello.handshake("quic.example", ech=True))]
    path = tmp_path / "traffic.pcap"
    path.write_bytes(build.pcap(frames))
    return path


def test_json_lines(capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(str(capture), "--json") == 0
    out, err = capsys.readouterr()
    late, absent, invalid, quic = [json.loads(line) for line in out.splitlines()]
    ja4 = late.pop("ja4")
    assert ja4.startswith("t13d0706h2_")
    assert late == {
        "transport": "tcp",
        "src": build.CLIENT,
        "sport": 40_000,
        "dst": build.SERVER,
        "dport": 25,
        "sni": "late.example",
        "state": "complete",
        "reason": "",
        "alpn": ["h2"],
        "versions": ["1.3", "1.2"],
        "ech": False,
        "late": True,
        "packet": 3,
        "time": "2001-09-09T01:46:40.000002Z",
        "vlan": [],
        "encap": [],
    }
    assert (absent["sni"], absent["state"], absent["late"]) == ("", "absent", False)
    assert (invalid["sni"], invalid["state"]) == ("\x1b[2J\x7f\u202e\\xff", "invalid")
    assert (quic["transport"], quic["sni"], quic["ech"], quic["ja4"][0]) == ("quic", "quic.example", True, "q")
    assert "client hellos: 4 (1 absent, 2 complete, 1 invalid)" in err


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_nothing_reaches_the_terminal_raw(
    capture: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    command(str(capture), *flags)
    out = capsys.readouterr().out
    assert "late.example" in out
    assert all(character == "\n" or " " <= character < "\x7f" for character in out)


def test_the_table_has_a_heading_and_a_line_a_hello(capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(str(capture))
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split()[:4] == ["packet", "time", "flow", "state"]
    assert len(lines) == 4
    assert "tcp 192.0.2.10:40000 > 198.51.100.20:25" in lines[0]
    assert "\\x1b[2J" in lines[2]
    assert "complete+ech" in lines[3]


def test_a_capture_cut_short_shows_what_was_whole(capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capture.write_bytes(capture.read_bytes()[:-1])
    with pytest.raises(InputError, match="ends inside a record") as caught:
        command(str(capture), "--json")
    assert caught.value.exit_code == 10
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize("content", [None, b"", b"not a capture"])
def test_what_is_no_capture_is_an_input_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError):
        command(str(path))
    with pytest.raises(InputError):
        command(str(tmp_path))


def test_the_policy_is_asked_at_connect_and_then_with_the_hello(
    capture: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Stage, Event, str, str, int]] = []

    def decide(facts: Facts, stage: Stage) -> Decision:
        asked.append((stage, facts.event, facts.name.value, facts.dest.transport.value, facts.dest.port))
        if stage is Stage.CONNECT:
            verdict = Verdict.ALLOW if facts.dest.transport.value == "udp" else Verdict.UNDECIDED
            return Decision(verdict, frozenset({"dest"}))
        verdict = Verdict.DENY if facts.name.value else Verdict.REJECT
        return Decision(verdict, frozenset({"name"}), (Reason("names", "not here"),))

    monkeypatch.setattr(inspect, "load_policy", lambda folder: decide)
    assert command(str(capture), "--json", "--policy", "some/folder") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["decision"] for line in lines] == ["deny", "reject", "reject", "allow"]
    assert lines[0]["reasons"] == [{"rule": "names", "message": "not here"}]
    assert asked[:2] == [
        (Stage.CONNECT, Event.CONNECT, "", "tcp", 25),
        (Stage.PAYLOAD, Event.LATE, "late.example", "tcp", 25),
    ]
    assert [stage for stage, *_ in asked].count(Stage.CONNECT) == 4
    assert [stage for stage, *_ in asked].count(Stage.PAYLOAD) == 3


def test_a_bad_policy_is_told_before_anything_is_read(
    capture: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SallyportError):
        command(str(capture), "--policy", str(tmp_path / "absent"))
    assert capsys.readouterr().out == ""


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command("--help")
    assert "sallyport inspect traffic.pcap --policy policies --json" in capsys.readouterr().out
