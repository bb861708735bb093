"""The noun `audit` as a user types it."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from audit.checkpoint import Head, VerifierKey, decode_base64
from audit.cli import moment, register
from audit.entry import note
from audit.layout import Layout
from audit.ocsf import Flow, decision
from audit.proof import InclusionProof
from audit.tree import check_consistency

ROOT = Path(__file__).parents[3]
MAIN = """
import argparse, sys
from audit.cli import register
parser = argparse.ArgumentParser(prog="sallyport")
register(parser.add_subparsers(required=True))
arguments = parser.parse_args()
sys.exit(arguments.handler(arguments))
"""


def command(*words: str) -> int:
    parser = argparse.ArgumentParser(prog="sallyport")
    register(parser.add_subparsers(required=True))
    args = parser.parse_args(["audit", *words])
    code = args.handler(args)
    assert isinstance(code, int)
    return code


@pytest.fixture
def at(small_log) -> list[str]:
    return ["--state-dir", str(small_log.state_dir)]


def test_verify_says_good_and_what_cannot_be_known(at: list[str], capfd) -> None:
    assert command("verify", *at) == 0
    out, err = capfd.readouterr()
    assert "vouched   8 entries" in out
    assert "--head" in out
    assert out.endswith("result    good\n")
    assert err == ""


def test_verify_exits_with_1_and_lists_findings(small_log, capfd) -> None:
    state_dir = small_log.copy()
    lines = Layout(state_dir).segments()[0].lines
    lines.write_bytes(small_log.lines.replace(b'"number":4', b'"number":5'))
    assert command("verify", "--state-dir", str(state_dir)) == 1
    assert "FINDING   roots: The head at 7 entries" in capfd.readouterr().out
    assert command("verify", "--state-dir", str(state_dir), "--json") == 1
    report = json.loads(capfd.readouterr().out)
    assert (report["ok"], report["count"], report["findings"][0]["code"]) == (False, 1, "root")
    assert report["vouched"]["size"] == 4


def test_a_head_and_a_key_kept_elsewhere(small_log, at: list[str], tmp_path: Path, capfdbinary) -> None:
    assert command("head", *at) == 0
    head = capfdbinary.readouterr().out
    assert head == small_log.notes[-1]
    assert command("key", *at) == 0
    key = capfdbinary.readouterr().out.decode()
    (tmp_path / "head").write_bytes(head)
    (tmp_path / "key").write_text(key)
    for given in (key.strip(), str(tmp_path / "key")):
        assert command("verify", *at, "--key", given, "--head", str(tmp_path / "head"), "--json") == 0
        report = json.loads(capfdbinary.readouterr().out)
        assert (report["external"], report["key"], report["key_from"]) == ([8], key.strip(), "the caller")


def test_json_of_head_and_key(small_log, at: list[str], capfd) -> None:
    assert command("head", *at, "--json") == 0
    said = json.loads(capfd.readouterr().out)
    assert (said["origin"], said["size"]) == ("sallyport/test", 8)
    assert said["note"].encode() == small_log.notes[-1]
    assert command("key", *at, "--json") == 0
    said = json.loads(capfd.readouterr().out)
    assert str(VerifierKey.parse(said["key"])) == f"{said['name']}+{said['id']}+{said['key'].split('+', 2)[2]}"


def test_an_inclusion_proof_holds_for_its_line_only(small_log, at: list[str], capfdbinary) -> None:
    assert command("key", *at) == 0
    key = VerifierKey.parse(capfdbinary.readouterr().out.decode().strip())
    lines = small_log.lines.splitlines()
    for seq in range(8):
        assert command("prove", "inclusion", str(seq), *at) == 0
        proof = InclusionProof.parse(capfdbinary.readouterr().out)
        assert command("prove", "inclusion", str(seq), "--entry", *at) == 0
        line = capfdbinary.readouterr().out
        assert line == lines[seq]
        assert proof.index == seq
        assert proof.proves(line, key)
        assert not proof.proves(lines[seq - 1], key)
        assert not proof.proves(line, VerifierKey("other", key.public))


def test_a_consistency_proof_holds_from_every_older_head(small_log, at: list[str], capfd) -> None:
    last = Head.parse(small_log.notes[-1])
    for older in map(Head.parse, small_log.notes):
        assert command("prove", "consistency", str(older.size), *at) == 0
        first, head = capfd.readouterr().out.split("\n\n", 1)
        old, *nodes = first.split("\n")
        assert old == f"old {older.size}"
        assert head.encode().startswith(small_log.notes[-1].split(b"\n\n")[0])
        assert check_consistency([decode_base64(node) for node in nodes], older.size, older.root, last.size, last.root)


def test_a_proof_over_changed_lines_is_refused(small_log, capfd) -> None:
    state_dir = small_log.copy()
    lines = Layout(state_dir).segments()[0].lines
    lines.write_bytes(small_log.lines.replace(b'"number":4', b'"number":5'))
    assert command("prove", "inclusion", "1", "--state-dir", str(state_dir)) == 8
    assert "do not have the root" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["prove", "inclusion", "8"], 2, "Entry 8 is not in a tree of 8 entries"),
        (["prove", "inclusion", "8", "--entry"], 2, "There is no entry 8"),
        (["prove", "consistency", "0"], 2, "no proof from 0 to 8"),
        (["prove", "consistency", "9"], 2, "no proof from 9 to 8"),
        (["prove", "consistency", "3", "--entry"], 2, "--entry goes with"),
        (["verify", "--key", "no key"], 2, "neither a verifier key nor a file"),
        (["verify", "--head", "/nonexistent/head"], 2, "cannot be read"),
    ],
)
def test_requests_that_cannot_be_met_are_one_sentence(at: list[str], capfd, words, code: int, said: str) -> None:
    assert command(*words, *at) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err
    assert "\n  " in err, "a hint follows"


@pytest.mark.parametrize("verb", [["show"], ["verify"], ["head"], ["key"], ["prove", "inclusion", "1"]])
def test_where_there_is_no_log_every_verb_says_so_with_8(tmp_path: Path, capfd, verb: list[str]) -> None:
    assert command(*verb, "--state-dir", str(tmp_path / "nowhere")) == 8
    out, err = capfd.readouterr()
    assert out == ""
    assert "nowhere" in err


@pytest.mark.parametrize(
    "words",
    [
        ["show", "--since", "yesterday"],
        ["show", "--address", "example.com"],
        ["show", "--seq", "9-x"],
        ["show", "--limit", "0"],
        ["prove", "inclusion", "-1"],
        ["prove", "existence", "1"],
        [],
    ],
)
def test_words_that_make_no_sense_end_with_2(words: list[str], capfd) -> None:
    with pytest.raises(SystemExit) as caught:
        command(*words)
    assert caught.value.code == 2
    assert "usage: sallyport audit" in capfd.readouterr().err


@pytest.mark.parametrize("verb", ["show", "verify", "head", "key", "prove"])
def test_every_verb_has_help_with_an_example(verb: str, capfd) -> None:
    with pytest.raises(SystemExit) as caught:
        command(verb, "--help")
    assert caught.value.code == 0
    assert f"example: sallyport audit {verb}" in capfd.readouterr().out.replace("\n", " ")


def test_show_for_people_and_programs(small_log, at: list[str], capfd) -> None:
    assert command("show", *at, "--type", "command", "--limit", "2") == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split("  ")[1:] for line in lines] == [["5", "command", "number=4"], ["6", "command", "number=5"]]
    assert command("show", *at, "--json", "--seq", "2-3") == 0
    assert capfd.readouterr().out.encode().splitlines() == small_log.lines.splitlines()[2:4]
    for words, seqs in ((["--seq", "7"], ["7"]), (["--seq", "6-"], ["6", "7"])):
        assert command("show", *at, *words) == 0
        assert [line.split("  ")[1] for line in capfd.readouterr().out.splitlines()] == seqs


def test_show_knows_every_filter(tmp_path: Path, open_log, capfd) -> None:
    log = open_log()
    flow = Flow("10.0.0.1", 5, "192.0.2.1", 443, name="a.example")
    log.append(decision(flow, "deny", event="payload", stage="payload", reasons=[("names", "listed")]))
    log.append(note("alert"))
    log.close()
    at = ["--state-dir", str(tmp_path)]
    filters = ["--verdict", "deny", "--name", "*.example", "--address", "192.0.2.0/24", "--rule", "names"]
    times = ["--since", "2027-01-15T08:00:00Z", "--until", "2027-01-15T09:00:00"]
    assert command("show", *at, *filters, *times) == 0
    assert len(capfd.readouterr().out.splitlines()) == 1
    for wrong in (["--exe", "/bin/*"], ["--since", "2028-01-01"], ["--until", "2026-01-01"], ["--type", "flow"]):
        assert command("show", *at, *filters, *wrong) == 0
        assert capfd.readouterr().out == ""


def test_times_relative_and_absolute() -> None:
    assert moment("2026-01-31T12:00:00Z") == moment("2026-01-31T13:00:00+01:00") == 1_769_860_800_000_000_000
    assert moment("2h") - moment("1d") == pytest.approx(22 * 3600 * 10**9, abs=10**9)


def test_a_reader_that_goes_away_is_no_error(small_log, at: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as broken:
        run = subprocess.run(
            [sys.executable, "-c", MAIN, "audit", "show", *at],
            cwd=ROOT,
            stdout=broken,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert run.stderr == b""
    assert run.returncode == 0


def test_the_package_stands_alone() -> None:
    code = (
        "import sys, audit.cli, audit.log; "
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'engine', 'bcc', 'pyroute2', 'aiohttp'}))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
