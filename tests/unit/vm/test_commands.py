"""The lab's command line: what is wrong is said in one sentence, with its own exit code, before anything starts."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vagrant.vm import __main__ as commands
from vagrant.vm import archive, box, checkout, tree, trial
from vagrant.vm.archive import Archive, Mirrors
from vagrant.vm.errors import LabError, NetworkError, RoomError, UsageError
from vagrant.vm.matrix import read, render, row, write
from vagrant.vm.trial import Outcome, parse_findings


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/sallyport/vm"


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["test", "--kernel", "tomorrow"], 2, 'vm: "tomorrow" names no kernel.'),
        (["test", "--system", "ubuntu2404"], 2, 'vm: There is no root tree for "ubuntu2404" here'),
        (["test", "--step", "dance"], 2, "vm: There is no step dance."),
        (["test", "tests/kernel/test_gone.py"], 2, 'vm: There is no test "tests/kernel/test_gone.py"'),
        (["test", ""], 2, 'vm: There is no test "" in the checkout.'),
        (["matrix", "--kernel", "6"], 2, 'vm: "6" names no kernel.'),
        (
            ["matrix", "tests/kernel/test_hold.py::test_a"],
            2,
            "vm: tests/kernel/test_hold.py::test_a is part of a file.",
        ),
        (["stories", "99-nothing"], 2, "vm: There is no story 99-nothing."),
    ],
)
def test_wrong_words(words: list[str], code: int, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(words) == code
    said = capsys.readouterr().err
    assert said.startswith(sentence)
    assert len(said.splitlines()) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["test"],
        ["test", "--system", "here"],
        ["matrix"],
        ["first-run"],
        ["stories"],
        ["box"],
        ["vagrant"],
        ["tree", "debian12", "image"],
    ],
    ids=" ".join,
)
def test_a_machine_that_cannot_run_the_kernels_is_told_so_before_anything_is_asked_of_it(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr("vagrant.vm.place.search_path", lambda: "/nowhere")
    assert commands.main(words) == 10
    said = capsys.readouterr().err
    assert said.startswith(
        "vm: The lab's machines run kernels for x86_64, and this machine is aarch64.\n  Use an x86_64"
    )
    assert len(said.splitlines()) == 2


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "inf", "soon"])
def test_a_limit_is_a_time(limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        commands.main(["test", f"--limit={limit}"])
    assert caught.value.code == 2
    assert f"invalid seconds value: '{limit}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), 14, "vm: The disk is full (/tmp/x)."),
        (OSError(errno.EROFS, "Read-only file system"), 1, "vm: The system refused something: Read-only file system."),
    ],
)
def test_what_the_system_refuses_is_told_in_a_sentence(
    error: OSError, code: int, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(words: object, tests: object) -> None:
        raise error

    monkeypatch.setattr(trial, "check_tests", refuse)
    assert commands.main(["test"]) == code
    said = capsys.readouterr().err
    assert said.startswith(sentence)
    assert len(said.splitlines()) == 2


def test_a_signal_is_an_exit_code_and_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trial, "check_tests", lambda words, tests: os.kill(os.getpid(), signal.SIGTERM))
    assert commands.main(["test"]) == 143
    assert capsys.readouterr().err == "vm: interrupted by SIGTERM; what it had running is gone\n"


def test_without_qemu_its_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("vagrant.vm.place.search_path", lambda: "/nowhere")
    assert commands.main(["test"]) == 20
    assert "apt-get install git qemu-system-x86 util-linux" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(commands, "require", lambda names: None)
    assert commands.main(["test"]) == 14
    assert "XDG_CACHE_HOME" in capsys.readouterr().err


def test_an_archive_that_does_not_answer_is_a_matter_of_the_network(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_cache.mkdir(parents=True)
    monkeypatch.setattr(archive, "KEYRING", own_cache)
    monkeypatch.setattr(archive, "mirrors", lambda: Mirrors("http://127.0.0.1:9/debian", "http://127.0.0.1:9/s"))
    with pytest.raises(NetworkError, match="cannot be reached") as caught:
        Archive(own_cache / "apt").refresh()
    assert "SALLYPORT_DEBIAN_MIRROR" in caught.value.hint


@pytest.mark.parametrize(("free", "kind"), [(0, RoomError), (1 << 30, NetworkError)])
def test_apt_that_hangs_is_ended(
    free: int, kind: type[LabError], tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_cache.mkdir(parents=True)
    (tmp_path / "apt-get").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(archive, "APT_SECONDS", 0.1)
    monkeypatch.setattr(archive, "KEYRING", own_cache)
    monkeypatch.setattr(archive, "mirrors", lambda: Mirrors("http://127.0.0.1:9/debian", "http://127.0.0.1:9/s"))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free))
    with pytest.raises(kind):
        Archive(own_cache / "apt").refresh()


def test_apts_own_words_decide_between_disk_network_and_the_rest() -> None:
    kinds = [
        type(archive._said("It failed", text)).__name__
        for text in (
            "E: Failed to fetch http://m/x  Could not connect to m",
            "E: You don't have enough free space in /var/cache",
            "E: Unable to locate package x",
        )
    ]
    assert kinds == ["NetworkError", "RoomError", "PackageError"]


def test_another_system_than_debian_has_to_name_a_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SALLYPORT_DEBIAN_MIRROR", raising=False)
    monkeypatch.setattr(archive, "mirrors_among", lambda repositories: None)
    with pytest.raises(UsageError, match="no mirror of Debian"):
        archive.mirrors()
    monkeypatch.setenv("SALLYPORT_DEBIAN_MIRROR", "http://m.example/debian/")
    assert archive.mirrors() == Mirrors("http://m.example/debian", "http://m.example/debian-security")


def test_a_root_tree_is_another_when_what_decides_its_content_changes(tmp_path: Path) -> None:
    for name in ("requirements-dev.txt", "pyproject.toml", "scripts/setup", "scripts/setup.d/a.sh"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    before = tree.key("debian12", tmp_path)
    assert tree.key("debian13", tmp_path) != before
    (tmp_path / "README.md").write_text("1")
    assert tree.key("debian12", tmp_path) == before
    (tmp_path / "scripts/setup.d/a.sh").write_text("2")
    assert tree.key("debian12", tmp_path) != before


def test_the_checkout_is_what_git_knows_and_what_is_new(tmp_path: Path) -> None:
    for name in ("known", "gone", "new", "ignored", ".gitignore"):
        (tmp_path / name).write_text("ignored\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "known", "gone", ".gitignore"], cwd=tmp_path, check=True)
    (tmp_path / "gone").unlink()
    assert checkout.listed(tmp_path) == [".gitignore", "known", "new"]


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no git checkout"):
        checkout.listed(tmp_path)


def test_a_disks_first_sector_is_what_a_bios_reads() -> None:
    record = box.master_record(b"\x90" * 512, 4096)
    assert len(record) == 512
    assert record[510:] == b"\x55\xaa"
    assert record[:440] == b"\x90" * 440
    assert record[446] == 0x80
    assert int.from_bytes(record[454:458], "little") == box.FIRST_SECTOR
    assert int.from_bytes(record[458:462], "little") == 4096


SURVEY = {
    "features": {
        "XDP": {"state": "degraded", "why": "generic on eth0"},
        "identity": {"state": "active", "why": ""},
    },
    "programs": {"gate_egress": {"instructions": 3442, "verified": 0}},
    "problems": [],
}


def test_the_document_says_what_was_found_out_and_what_was_not_tried(tmp_path: Path) -> None:
    rows = {"5.10": row(None, Outcome(0, "5.10.0-46", findings={"survey": SURVEY}))}
    kernel = {"files": {"test_hold.py": {"tests": 9, "passed": 8, "failed": ["test_x"]}}, "there_are": 24}
    rows["6.1"] = row(None, Outcome(1, "6.1.0-56", findings={"kernel": kernel}))
    write(tmp_path / "figures", rows)
    text = render(read(tmp_path / "figures"))
    assert "| 5.10 | 5.10.0-46 | yes | not tried | not tried | not tried |" in text
    assert "| 6.1 | 6.1.0-56 | not tried | 8 of 9 (1 of 24 files) |" in text
    assert "| file | 6.1 |\n|---|---|\n| test_hold.py | 8 of 9 |" in text
    assert "| gate_egress | (3,442) |" in text
    assert "- XDP (5.10): generic on eth0" in text
    assert "- 6.1, kernel: test_hold.py::test_x" in text


def test_a_row_is_about_one_build_of_a_kernel() -> None:
    before = row(None, Outcome(0, "6.1.0-56", findings={"survey": SURVEY}))
    assert "survey" in row(before, Outcome(0, "6.1.0-56", findings={"lab": {}}))
    assert "survey" not in row(before, Outcome(0, "6.1.0-57", findings={"lab": {}}))


def test_files_that_a_trial_before_tried_stay_until_they_are_tried_again() -> None:
    def tried(**passed: int) -> Outcome:
        files = {f"{name}.py": {"tests": 2, "passed": each, "failed": []} for name, each in passed.items()}
        return Outcome(0, "6.1.0-56", findings={"kernel": {"files": files, "there_are": 24}})

    after = row(row(None, tried(test_a=1, test_b=2)), tried(test_a=2))
    assert render({"6.1": after}).count("| 4 of 4 (2 of 24 files) |") == 1
    assert row(after, tried(test_c=2))["kernel"]["files"].keys() == {"test_a.py", "test_b.py", "test_c.py"}


def test_attempts_that_some_kernel_does_not_block_are_told_with_their_reason() -> None:
    def saw(release: str, **others: str) -> dict[str, object]:
        not_blocked = {name: {"outcome": end, "why": f"Why {name} is {end}."} for name, end in others.items()}
        counts = {"blocked": 9 - len(others), "open": len(others)}
        return row(None, Outcome(0, release, findings={"bypass": {"counts": counts, "not_blocked": not_blocked}}))

    text = render({"5.10": saw("5.10.0-46", IGMP="open", MPTCP="not here"), "6.1": saw("6.1.0-56", IGMP="open")})
    assert "| 5.10 | 5.10.0-46 | not tried | not tried | not tried | 7 blocked, 2 open |" in text
    assert "| attempt | 5.10 | 6.1 |\n|---|---|---|\n| IGMP | open | open |\n| MPTCP | not here | blocked |\n" in text
    assert "- IGMP (5.10, 6.1): Why IGMP is open.\n- MPTCP (5.10): Why MPTCP is not here.\n" in text


def test_what_is_no_finding_is_left_out() -> None:
    assert parse_findings(["", "[1]", '{"no": "step"}', json.dumps({"step": "lab", "tests": 3})]) == {
        "lab": {"tests": 3}
    }


def test_every_error_has_an_exit_code_of_its_own() -> None:
    codes = [kind.exit_code for kind in LabError.__subclasses__()]
    assert len(codes) == len(set(codes))


def guest_finds(step: str, file: Path, code: int) -> dict[str, object]:
    """What the guest's own script makes of a step's result, with the interpreter that runs these tests."""
    words = [sys.executable, str(trial.GUEST / "findings"), step, str(file)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=commands.CHECKOUT)
    assert done.returncode == code, done.stderr
    return parse_findings(done.stdout.splitlines())[step]


def test_the_guest_counts_tests_that_failed_and_those_that_could_not_begin(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(
        '<testsuites><testsuite tests="4"><testcase classname="tests.kernel.test_a" name="x"/>'
        '<testcase classname="tests.kernel.test_a.TestOfSome" name="y"><failure/></testcase>'
        '<testcase classname="tests.kernel.test_a" name="z"><error/></testcase>'
        '<testcase classname="tests.kernel.test_b" name="x"/></testsuite></testsuites>'
    )
    assert guest_finds("kernel", tmp_path / "junit.xml", 0) == {
        "files": {
            "test_a.py": {"tests": 3, "passed": 1, "failed": ["y", "z"]},
            "test_b.py": {"tests": 1, "passed": 1, "failed": []},
        },
        "there_are": len(list((commands.CHECKOUT / "tests/kernel").glob("test_*.py"))),
    }


def test_the_guest_names_what_failed_in_the_lab(tmp_path: Path) -> None:
    (tmp_path / "lab").write_text('{"scenarios": [{"name": "a", "passed": true}, {"name": "b", "passed": false}]}')
    assert guest_finds("lab", tmp_path / "lab", 1) == {"tests": 2, "passed": 1, "failed": ["b"]}


def test_the_guest_tells_what_is_known_to_be_open_from_what_is_not(tmp_path: Path) -> None:
    def attempt(name: str, outcome: str, reason: str) -> dict[str, str]:
        return {"name": name, "outcome": outcome, "reason": reason, "observed": "2 bytes arrived"}

    known = [attempt("a", "blocked", "Why."), attempt("b", "open", "Why."), attempt("c", "not here", "2 bytes arrived")]
    report = {"counts": {"blocked": 1, "open": 1, "not here": 1}, "attempts": known}
    (tmp_path / "bypass").write_text(json.dumps(report))
    others = {"b": {"outcome": "open", "why": "Why."}, "c": {"outcome": "not here", "why": "2 bytes arrived"}}
    found = guest_finds("bypass", tmp_path / "bypass", 0)
    assert found == {"counts": report["counts"], "not_blocked": others, "failed": []}

    (tmp_path / "bypass").write_text(json.dumps({**report, "attempts": [attempt("d", "open", "2 bytes arrived")]}))
    text = render(
        {"6.1": row(None, Outcome(1, "6.1", findings={"bypass": guest_finds("bypass", tmp_path / "bypass", 1)}))}
    )
    assert "- 6.1, bypass: d\n" in text


def test_two_matrices_at_once_keep_each_others_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = tmp_path / "kernels.json"
    monkeypatch.setattr(commands, "FIGURES", figures)
    monkeypatch.setattr(commands, "DOCUMENT", tmp_path / "kernels.md")

    def tried(*_: object) -> Outcome:
        write(figures, {**read(figures), "5.10": row(None, Outcome(0, "5.10.0-1"))})  # by the other one, meanwhile
        return Outcome(0, "6.1.0-1")

    monkeypatch.setattr(commands, "_trial", tried)
    assert commands.main(["matrix", "--kernel", "6.1", "--step", "survey"]) == 0
    assert set(read(figures)) == {"5.10", "6.1"}


@pytest.mark.parametrize("script", ["job", "boot", "agent"])
def test_the_guests_scripts_can_be_parsed(script: str) -> None:
    subprocess.run(["bash", "-n", str(trial.GUEST / script)], check=True)
