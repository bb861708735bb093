"""`sallyport lab` as scripts see it: exit codes, what is on stdout, what a signal does."""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.cli import lab as command
from engine.lab import lab as labs
from engine.lab import play
from engine.lab import run as runs
from engine.lab.errors import LabError
from engine.lab.interruption import Interruption, undisturbed
from engine.lab.play import Played, run_lab
from engine.lab.scenario import Result, Scenario, Sight

GOOD = {"ok": True, "entries": 1, "heads": 1, "vouched": {"size": 1}, "findings": []}


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    return parser.parse_args(["lab", *words])


def plays(monkeypatch: pytest.MonkeyPatch, *passed: bool, verify: dict[str, Any] = GOOD) -> None:
    def run_lab(
        _scenarios: Sequence[Scenario],
        _state_dir: Path | None,
        *,
        begun: Callable[[str], None],
        told: Callable[[Result], None],
    ) -> Played:
        begun("1234abcd")
        results = tuple(Result(f"scenario {at}", "expected", "observed", each, 1) for at, each in enumerate(passed))
        for result in results:
            told(result)
        return Played(results, verify, 1.25)

    monkeypatch.setattr(play, "run_lab", run_lab)


@pytest.mark.parametrize(
    ("passed", "verify", "code"),
    [
        ((True, True), GOOD, 0),
        ((True, False), GOOD, 1),
        ((True,), {"ok": False}, 1),
        ((), GOOD, 1),
    ],
)
def test_the_exit_code_says_whether_all_of_it_passed(
    monkeypatch: pytest.MonkeyPatch, passed: tuple[bool, ...], verify: dict[str, Any], code: int
) -> None:
    plays(monkeypatch, *passed, verify=verify)
    assert command.run(parse()) == code


def test_json_is_one_document_on_stdout_and_the_progress_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plays(monkeypatch, True)
    command.run(parse("--json", "--state-dir", str(tmp_path)))
    said = capsys.readouterr()
    scenario = {"name": "scenario 0", "expected": "expected", "observed": "observed", "passed": True, "milliseconds": 1}
    assert json.loads(said.out) == {
        "passed": True, "seconds": 1.2, "state_dir": str(tmp_path), "scenarios": [scenario], "verify": GOOD,
    }  # fmt: skip
    assert "scenario 0" in said.err


def test_a_person_is_told_each_scenario_the_table_the_log_and_the_sum(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plays(monkeypatch, True, False)
    command.run(parse())
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("lab 1234abcd: building")
    assert said[1].split() == ["scenario", "0", "ok", "1", "ms"]
    assert said[2].split() == ["scenario", "1", "FAILED", "1", "ms"]
    assert any(line.startswith("audit verify: good") for line in said)
    assert said[-1] == "1 of 2 scenarios passed in 1.2 s"


@contextmanager
def nothing_built(taken_away: list[str], during: Callable[[], None]) -> Iterator[Any]:
    gate = SimpleNamespace(
        lives=True, close=lambda: None, sallyport=lambda *_: SimpleNamespace(out=json.dumps(GOOD), last_words="")
    )
    try:
        yield SimpleNamespace(gate=gate)
    finally:
        with undisturbed():
            during()
            taken_away.append("all")


def run_with(
    monkeypatch: pytest.MonkeyPatch, scenario: Scenario, during: Callable[[], None] = lambda: None
) -> list[str]:
    taken_away: list[str] = []
    monkeypatch.setattr(play, "open_lab", lambda _state_dir, _begun: nothing_built(taken_away, during))
    run_lab([scenario], None, begun=lambda _name: None, told=lambda _result: None)
    return taken_away


def ask_to_end(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_ends_the_run_once_everything_is_taken_away(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    taken_away: list[str] = []
    # A second, impatient one comes while everything is being taken away.
    monkeypatch.setattr(play, "open_lab", lambda _state_dir, _begun: nothing_built(taken_away, ask_to_end(number)))

    def interrupted(_lab: Any, saw: Sight) -> None:
        ask_to_end(number)()
        saw(True, "it went on")

    with pytest.raises(Interruption) as caught:
        run_lab([Scenario("name", "expected", interrupted)], None, begun=lambda _name: None, told=lambda _result: None)
    assert (caught.value.number, taken_away) == (number, ["all"])
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_a_signal_after_the_last_scenario_does_not_stop_the_taking_away(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Scenario("name", "expected", lambda _lab, saw: saw(True, "seen"))
    assert run_with(monkeypatch, seen, ask_to_end(signal.SIGINT)) == ["all"]


def test_an_interrupted_command_ends_with_the_signal_s_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_args: Any, **_how: Any) -> Played:
        raise Interruption(signal.SIGTERM)

    monkeypatch.setattr(play, "run_lab", interrupted)
    assert command.run(parse()) == 143
    assert "taken away" in capsys.readouterr().err


def test_a_missing_program_is_named_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(
        runs.shutil, "which", lambda program, path=None: None if program == "nginx" else f"/bin/{program}"
    )
    monkeypatch.setattr(runs.Journal, "begin", lambda _plan: pytest.fail("a run was begun"))
    with pytest.raises(LabError, match="needs nginx") as caught, labs.open_lab(None, lambda _name: None):
        pass
    assert "make setup" in caught.value.hint


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    assert "example:\n  sallyport lab\n" in capsys.readouterr().out
