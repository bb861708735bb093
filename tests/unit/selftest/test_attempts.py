"""The rows of the table, and the policy that they are tried under."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from engine.lab.topology import DENIED, SERVER
from engine.lab.waiting import until
from engine.selftest.attempt import Attempt, Outcome
from engine.selftest.attempts import ALL
from engine.selftest.client import Child
from engine.selftest.policy import ALLOWED_NAME, BY_DIGEST, BY_PATH, DENIED_SUFFIX, PROTECTED, RESOLVER, write_policy


@pytest.mark.parametrize("attempt", ALL, ids=lambda attempt: str(attempt.name))
def test_every_attempt_says_why_it_comes_to_what(attempt: Attempt) -> None:
    assert attempt.because
    for reason in (*attempt.because.values(), attempt.tries):
        assert "\n" not in reason
    assert all(reason[0].isupper() and reason.endswith(".") for reason in attempt.because.values())
    # Only what can be told from the log can be seen.
    assert (Outcome.SEEN in attempt.because) is (attempt.tells is not None)


def test_no_two_attempts_have_one_name() -> None:
    assert len({attempt.name for attempt in ALL}) == len(ALL)


def test_what_is_named_in_the_policy_is_apart() -> None:
    suffixes = [f".{each}" for each in (DENIED_SUFFIX, PROTECTED, BY_PATH, BY_DIGEST)]
    assert not any(f".{name}".endswith(suffix) for name in (ALLOWED_NAME, RESOLVER) for suffix in suffixes)


def test_the_policy_passes_the_check_and_knows_its_addresses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from engine.cli.main import main

    program = tmp_path / "program"
    program.write_bytes(b"program")
    write_policy(tmp_path / "policy", program, program)
    assert main(["policy", "check", str(tmp_path / "policy")]) == 0
    settings = (tmp_path / "policy" / "settings" / "selftest.json").read_text()
    assert DENIED in settings
    assert SERVER in settings
    assert capsys.readouterr().err == ""


def child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, attempt: Attempt) -> Child:
    monkeypatch.setattr("engine.selftest.client.ALL", (attempt,))
    files = dict.fromkeys(("work", "listed", "unwanted"), str(tmp_path))
    return Child(attempt.name, {"port": 1, "token": "token", **files})


def test_an_attempt_s_error_is_its_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def act(_chance: object) -> None:
        raise PermissionError(1, "no")

    attempt = Attempt("name", "tries", act, {}, files=True)
    assert child(monkeypatch, tmp_path, attempt).end() == "EPERM"


def test_what_an_attempt_leaves_behind_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    left = tmp_path / "left"

    def act(_chance: object) -> None:
        if os.fork() == 0:
            left.write_text(str(os.getpid()))
            time.sleep(600)
            os._exit(0)
        until(lambda: left.exists() and left.read_text())

    assert child(monkeypatch, tmp_path, Attempt("name", "tries", act, {}, files=True)).end() == ""
    pid = int(left.read_text())
    assert until(lambda: state(pid) in {"Z", ""}, 20)


def state(pid: int) -> str:
    """The state of a process as in proc(5), empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_an_early_attempt_waits_for_the_gate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def act(chance: object) -> None:
        (tmp_path / "before").touch()
        chance.wait()  # type: ignore[attr-defined]
        (tmp_path / "after").touch()

    waiting = child(monkeypatch, tmp_path, Attempt("name", "tries", act, {}, early=True, files=True))
    assert waiting.prepared()
    assert ((tmp_path / "before").exists(), (tmp_path / "after").exists()) == (True, False)
    assert waiting.end() == ""
    assert (tmp_path / "after").exists()
