"""The command line as a script meets it: help, exit codes, and errors where they belong."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from audit.errors import AuditError
from engine import __version__, errors
from engine.cli import main as command_line
from engine.cli.main import main, parser
from engine.errors import EXIT_FINDING, EXIT_OK, KernelError, SallyportError

ROOT = Path(__file__).parents[3]
INTERRUPTED = 130


def commands(of: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield every command that does something: the words before its options."""
    groups = [action for action in of._actions if isinstance(action, argparse._SubParsersAction)]
    for group in groups:
        for word, below in group.choices.items():
            yield from commands(below, (*words, word))
    if not any(group.required for group in groups):
        yield words


COMMANDS = list(commands(parser()))


def family(kind: type[SallyportError]) -> set[type[SallyportError]]:
    return {kind}.union(*(family(child) for child in kind.__subclasses__()))


def outcome(*words: str) -> int:
    """The exit code, however the command ended."""
    try:
        return main(words)
    except SystemExit as end:
        return int(end.code or 0)


def examples(text: str) -> list[list[str]]:
    """Return the words of each example, without `sallyport`, comments, and what a shell would do with the output."""
    block = re.split(r"^examples?:", text, flags=re.MULTILINE)[-1].partition("\n\n")[0]
    lines = re.findall(r"^\s*sallyport (\S.*)$", block, re.MULTILINE)
    return [shlex.split(re.split(r" [|>&] ", line)[0], comments=True) for line in lines]


# ---- help


def test_every_command_of_the_contract_is_there() -> None:
    assert {words[0] for words in COMMANDS} == {
        "run", "status", "verdict", "strategy", "policy", "audit", "inspect", "lab", "selftest", "panic",
    }  # fmt: skip
    assert {words for words in COMMANDS if words[0] in ("verdict", "strategy")} == {
        (kind, verb) for kind in ("verdict", "strategy") for verb in ("set", "clear", "list")
    }


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_has_an_example_of_the_very_command(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(*words, "--help") == EXIT_OK
    out, err = capsys.readouterr()
    assert err == ""
    assert words[0] in {example[0] for example in examples(out)}


@pytest.mark.parametrize("group", ["verdict", "strategy", "policy", "audit"])
def test_a_group_lists_its_verbs(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(group, "--help") == EXIT_OK
    out = capsys.readouterr().out
    for words in COMMANDS:
        if words[0] == group:
            assert re.search(rf"^\s+{words[1]}\b", out, re.MULTILINE), words


def test_help_for_all_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome("--help") == EXIT_OK
    out = capsys.readouterr().out
    for word in {words[0] for words in COMMANDS}:
        assert re.search(rf"^\s+{word}\b", out, re.MULTILINE), word


def test_examples_in_help_are_commands_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Each example is read by the very parser that it advertises."""
    seen = 0
    for words in COMMANDS:
        outcome(*words, "--help")
        for example in examples(capsys.readouterr().out):
            parser(example[0]).parse_args(example)
            seen += 1
    assert seen > 20


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome("--version") == EXIT_OK
    assert capsys.readouterr().out == f"sallyport {__version__}\n"


# ---- exit codes


def documented(text: str) -> dict[int, str]:
    return {int(code): meaning for code, meaning in re.findall(r"^\| (\d+) \| (.+?) \|$", text, re.MULTILINE)}


def test_the_table_of_exit_codes_is_the_code() -> None:
    table = documented((ROOT / "docs" / "operations.md").read_text(encoding="utf-8"))
    real = {EXIT_OK, EXIT_FINDING, INTERRUPTED} | {kind.exit_code for kind in family(SallyportError)}
    assert set(table) == real


def test_no_two_errors_share_an_exit_code() -> None:
    named = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SallyportError)]
    codes = [kind.exit_code for kind in named]
    assert len(codes) == len(set(codes))


def test_the_auditors_errors_have_codes_of_the_same_table() -> None:
    def below(kind: type[AuditError]) -> set[type[AuditError]]:
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    table = documented((ROOT / "docs" / "operations.md").read_text(encoding="utf-8"))
    assert {kind.exit_code for kind in below(AuditError)} <= set(table)


def test_the_codes_in_the_help_are_those_of_the_table() -> None:
    text = command_line._EPILOG.partition("exit codes:")[2].partition("start here:")[0]
    codes = {int(code) for code in re.findall(r"(?:^| {2,})(\d+)  ", text, re.MULTILINE)}
    table = documented((ROOT / "docs" / "operations.md").read_text(encoding="utf-8"))
    assert codes == set(table) - {INTERRUPTED, SallyportError.exit_code}


@pytest.mark.parametrize(
    "words",
    [
        (), ("dance",), ("verdict",), ("verdict", "dance"), ("verdict", "set"), ("status", "--dance"),
        ("verdict", "set", "--name", "a.example", "ignore"), ("strategy", "set", "--uid", "7", "deny"),
        ("run", "--mode", "strict"), ("run", "--evaluator", "guess"), ("policy", "check", "a", "b", "c"),
    ],
)  # fmt: skip
def test_words_that_are_off_end_with_2(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: sallyport")


@pytest.mark.parametrize("kind", sorted(family(SallyportError), key=lambda kind: kind.__name__))
def test_an_error_ends_on_stderr_with_its_code(
    kind: type[SallyportError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> int:
        error = KernelError("It failed", hint="Do this.")
        error.__class__ = kind
        raise error

    assert ends(fail, monkeypatch) == kind.exit_code
    out, err = capsys.readouterr()
    assert (out, err) == ("", "sallyport: It failed\n  Do this.\n")


def ends(handler: object, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a command with this handler."""
    fake = SimpleNamespace(parse_args=lambda _: SimpleNamespace(handler=handler))
    monkeypatch.setattr(command_line, "parser", lambda _: fake)
    return main(["status"])


def test_a_fault_of_our_own_is_not_mistaken_for_a_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> int:
        raise ZeroDivisionError

    assert ends(fail, monkeypatch) == 70
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_an_interrupt_is_said_by_its_code_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    assert ends(interrupted, monkeypatch) == INTERRUPTED
    assert capsys.readouterr().err == ""


# ---- run


@pytest.mark.parametrize(
    ("words", "user", "code", "sentence"),
    [
        ((), 0, 2, "No interface is given"),
        (("--interface", "lo"), 0, 2, "No policy is given"),
        (("--config", "/nowhere/config.toml"), 0, 11, "/nowhere/config.toml cannot be read"),
        (("--interface", "lo", "--policy", "p"), 1000, 5, "Guarding an interface needs root"),
    ],
)
def test_run_without_what_it_needs_says_so_in_a_sentence(
    words: tuple[str, ...], user: int, code: int, sentence: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("os.geteuid", lambda: user)
    assert outcome("run", *words) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err.splitlines()[0]
    assert "Traceback" not in err


def test_panic_without_root_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert outcome("panic") == 5
    assert "Detaching needs root" in capsys.readouterr().err
