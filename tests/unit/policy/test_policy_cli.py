"""`sallyport policy`: what a person and a script see."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from engine.cli import policy
from tests.support.policies import Write, rule

LIBRARY = Path(__file__).parents[3] / "policies"


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    policy.register(parser.add_subparsers())
    args = parser.parse_args(["policy", *words])
    return int(args.handler(args))


def test_check_prints_the_scopes_and_who_widens_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", str(LIBRARY)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "5 rules, default allow" in lines[0]
    assert "  denies by denied_names will be kept under name" in lines
    assert lines[-1].startswith("  the default (allow) will be kept under cgroup, dest, exe, name (")
    assert "cloud_metadata adds cgroup, dest" in lines[-1]


def test_check_prints_every_error_with_its_place_and_mend(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(
        {
            "one.rego": rule('deny contains "d" if input.user.uid == 0'),
            "two.rego": rule("deny contains if {", name="two"),
        }
    )
    assert run("check", str(folder)) == 4
    printed = capsys.readouterr()
    assert printed.out.splitlines()[:2] == [
        f"{folder}/one.rego:5:22: rule one reads input.user.uid, but its scope is {{dest}}",
        '    add "user" to its scope, or do not read it',
    ]
    assert f"{folder}/two.rego:5:" in printed.out
    assert (
        printed.err
        == "the policy has 2 errors, first one.rego:5:22: rule one reads input.user.uid, but its scope is {dest}\n"
    )


def test_check_as_json(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", str(LIBRARY), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is True
    assert len(document["digest"]) == 64
    assert document["default"] == "allow"
    assert document["rules"][1] == {
        "name": "cloud_metadata",
        "file": "rules/cloud_metadata/cloud_metadata.rego",
        "scope": ["cgroup", "dest"],
        "target_scope": ["dest"],
        "effects": ["deny"],
        "reads": ["cgroup.unit", "dest.address"],
    }
    assert run("check", str(write({"one.rego": rule('deny contains "d" if input.user.uid == 0')})), "--json") == 4
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert document["findings"] == [
        {
            "file": "one.rego",
            "line": 5,
            "col": 22,
            "message": "rule one reads input.user.uid, but its scope is {dest}",
            "mend": 'add "user" to its scope, or do not read it',
            "warning": False,
        }
    ]


def test_check_of_no_folder_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", str(tmp_path / "missing")) == 4
    assert (
        capsys.readouterr().out.splitlines()[0] == f"{tmp_path}/missing:0:0: no policy folder here (FileNotFoundError)"
    )


def test_messages_cannot_drive_the_terminal(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", str(write({"one.rego": rule('deny contains "d" if input["\\u001b[2J"] == 1')}))) == 4
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\\x1b[2J" in printed


@pytest.mark.parametrize("evaluator", ["embedded", "opa"])
def test_test_reports_each_test_with_its_place(
    evaluator: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "one.rego": rule('deny contains "d" if input.dest.port == 1'),
        "one_test.rego": (
            "package one_test\n\ntest_good if true\n\ntest_bad if 1 == 2\n\ntodo_test_later if false\n\n"
            'test_cases[name] := 1 == number if some name, number in {"a": 1, "b": 2}\n'
        ),
    }
    assert run("test", str(write(files)), "--evaluator", evaluator) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "PASS one_test.rego:3 one_test.test_good" in lines
    assert "FAIL one_test.rego:5 one_test.test_bad" in lines
    assert "SKIP one_test.rego:7 one_test.todo_test_later" in lines
    assert any(line.startswith("FAIL one_test.rego:9 one_test.test_cases") for line in lines)
    assert lines[-1] == f"1 of 4 passed ({evaluator})"


@pytest.mark.parametrize("evaluator", ["embedded", "opa"])
def test_test_ends_well_for_the_library(evaluator: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("test", str(LIBRARY), "--evaluator", evaluator, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["ok"], document["evaluator"]) == (True, evaluator)
    assert {test["outcome"] for test in document["tests"]} == {"pass"}


def test_no_test_is_no_pass(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("test", str(write({"one.rego": rule('deny contains "d"')}))) == 1
    assert capsys.readouterr().out == "there is no test\n"


def test_a_bad_policy_is_not_tested(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("test", str(write({"one.rego": rule('deny contains "d" if input.user.uid == 0')}))) == 4
    assert "one.rego:5:22" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("policy", "--help"), ("policy", "check", "--help"), ("policy", "test", "--help")])
def test_help_has_an_example(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    policy.register(parser.add_subparsers())
    with pytest.raises(SystemExit):
        parser.parse_args(words)
    assert "example:\n  sallyport policy" in capsys.readouterr().out
