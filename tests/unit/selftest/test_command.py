"""`sallyport selftest` as scripts see it: exit codes, what is on stdout, what is signed."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from audit import keys
from engine.cli import selftest as command
from engine.cli.main import main
from engine.lab.interruption import Interruption
from engine.lab.scenario import Result
from engine.selftest import bypass, proofs
from engine.selftest.attempt import Attempt, Outcome, Tried


@pytest.fixture(autouse=True)
def no_key_of_the_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "_STATE_DIR", tmp_path / "nowhere")


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    (tmp_path / "state" / "audit").mkdir(parents=True)
    keys.create(tmp_path / "state" / "audit", "sallyport/host/1")
    return tmp_path / "state"


def proves(monkeypatch: pytest.MonkeyPatch, *passed: bool) -> None:
    def run_proofs(*, begun: Callable[[str], None], told: Callable[[Result], None]) -> Sequence[Result]:
        begun("1234abcd")
        results = [Result(f"proof {at}", "expected", "observed", each, 1) for at, each in enumerate(passed)]
        for result in results:
            told(result)
        return results

    monkeypatch.setattr(proofs, "run_proofs", run_proofs)


def attempts(monkeypatch: pytest.MonkeyPatch, *outcomes: Outcome) -> None:
    def run_bypass(_attempts: Any, *, begun: Callable[[str], None], told: Callable[[Tried], None]) -> list[Tried]:
        begun("1234abcd")
        done = [
            Tried(Attempt(f"attempt {at}", "tries", lambda _chance: None, {}), each, "observed")
            for at, each in enumerate(outcomes)
        ]
        for each in done:
            told(each)
        return done

    monkeypatch.setattr(bypass, "run_bypass", run_bypass)


@pytest.mark.parametrize(("passed", "code"), [((True, True), 0), ((True, False), 1), ((), 1)])
def test_the_exit_code_says_whether_every_proof_holds(
    monkeypatch: pytest.MonkeyPatch, passed: tuple[bool, ...], code: int
) -> None:
    proves(monkeypatch, *passed)
    assert main(["selftest"]) == code


def test_json_is_one_document_on_stdout_and_the_progress_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    proves(monkeypatch, True)
    main(["selftest", "--json"])
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert (document["passed"], document["note"], document["proofs"][0]["name"]) == (True, None, "proof 0")
    assert set(document) == {"passed", "kernel", "machine", "version", "time", "proofs", "note"}
    assert "proof 0" in said.err


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1)])
def test_the_note_can_be_verified_by_the_command_that_says_so(
    monkeypatch: pytest.MonkeyPatch, state_dir: Path, capsys: pytest.CaptureFixture[str], passed: bool, code: int
) -> None:
    proves(monkeypatch, passed)
    note = state_dir / "note"
    main(["selftest", "--sign-with", str(state_dir), "--note", str(note)])
    assert f"Signed by sallyport/host/1: sallyport selftest verify {note}" in capsys.readouterr().out
    public = state_dir / "audit" / "key.pub"
    for key in ([], ["--key", str(public)], ["--key", public.read_text().strip()]):
        assert main(["selftest", "verify", str(note), "--state-dir", str(state_dir), *key]) == code
        assert f"{int(passed)} of 1 proofs hold" in capsys.readouterr().out


def test_a_changed_note_is_refused(
    monkeypatch: pytest.MonkeyPatch, state_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proves(monkeypatch, False)
    note = state_dir / "note"
    main(["selftest", "--sign-with", str(state_dir), "--note", str(note)])
    note.write_bytes(note.read_bytes().replace(b'"passed": false', b'"passed": true'))
    assert main(["selftest", "verify", str(note), "--state-dir", str(state_dir)]) == 10
    assert "was changed" in capsys.readouterr().err


def test_a_key_that_cannot_be_used_is_told_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(proofs, "run_proofs", lambda **_how: pytest.fail("something was built"))
    assert main(["selftest", "--sign-with", str(tmp_path)]) == 8
    assert "key" in capsys.readouterr().err


def test_a_note_without_a_key_is_refused_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(proofs, "run_proofs", lambda **_how: pytest.fail("something was built"))
    assert main(["selftest", "--note", str(tmp_path / "note")]) == 2
    assert "--sign-with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ((Outcome.BLOCKED, Outcome.SEEN, Outcome.NOT_HERE), 0),
        ((Outcome.BLOCKED, Outcome.OPEN), 1),
    ],
)
@pytest.mark.parametrize("form", [[], ["--json"], ["--markdown"]], ids=["text", "json", "markdown"])
def test_what_is_open_is_a_finding(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    form: list[str],
    outcomes: tuple[Outcome, ...],
    code: int,
) -> None:
    attempts(monkeypatch, *outcomes)
    assert main(["selftest", "bypass", *form]) == code
    said = capsys.readouterr()
    assert all(f"attempt {at}" in said.out for at in range(len(outcomes)))
    if form == ["--json"]:
        assert [each["outcome"] for each in json.loads(said.out)["attempts"]] == [each.value for each in outcomes]


@pytest.mark.parametrize("words", [["selftest"], ["selftest", "bypass"]], ids=" ".join)
def test_an_interrupted_command_ends_with_the_signal_s_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    def interrupted(*_args: Any, **_how: Any) -> Any:
        raise Interruption(signal.SIGTERM)

    monkeypatch.setattr(proofs, "run_proofs", interrupted)
    monkeypatch.setattr(bypass, "run_bypass", interrupted)
    assert main(words) == 143
    assert "taken away" in capsys.readouterr().err
