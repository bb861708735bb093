"""A folder means what it means to OPA, and what cannot be read is refused by name."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from engine.policy.bundle import read
from engine.policy.contents import MAX_REGO_BYTES
from engine.policy.findings import PolicyRefusedError
from engine.policy.opa_server import find_program
from tests.support.policies import Write, rule


def refused(folder: Path) -> list[tuple[str, int, str]]:
    with pytest.raises(PolicyRefusedError) as caught:
        read(folder)
    assert caught.value.exit_code == 4
    return [(finding.file, finding.line, finding.message) for finding in caught.value.findings]


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


def test_data_is_where_opa_puts_it(write: Write) -> None:
    folder = write(
        {
            "root.json": {"root": 1, "lists": {"from_root": True}},
            "lists/a.json": {"a": {"x": 1}},
            "lists/deep/b.json": {"b": [1, 2]},
            "lists/c.json": {"a": {"y": 2}},
            "rules/one/samples/samples.json": {"case": {"input": {}}},
            ".hidden/d.json": {"hidden": 1},
            "notes.txt": "not data",
        }
    )
    bundle = read(folder)
    run = subprocess.run(
        [find_program("opa"), "eval", "--ignore", ".*", "-f", "raw", "-d", ".", "data"],
        cwd=folder,
        capture_output=True,
        check=True,
    )
    by_opa = json.loads(run.stdout)
    del by_opa["sallyport"]
    assert bundle.test_data == by_opa
    assert bundle.data == {key: value for key, value in by_opa.items() if key != "rules"}
    assert bundle.data_files["lists", "a"] == "lists/a.json"


def test_tests_are_kept_apart(write: Write) -> None:
    bundle = read(write({"one.rego": rule('deny contains "d"'), "one_test.rego": "package t\n\ntest_a if true\n"}))
    assert [module.file for module in bundle.modules] == ["one.rego", "sallyport.rego"]
    assert [module.file for module in bundle.tests] == ["one_test.rego"]


def test_the_digest_follows_every_byte_and_every_name(write: Write) -> None:
    digests = set()
    folder = write({"one.rego": rule('deny contains "d"'), "a.json": {"a": 1}})
    digests.add(read(folder).digest)
    assert read(folder).digest in digests
    (folder / "a.json").write_text('{"a": 1} ')
    digests.add(read(folder).digest)
    (folder / "one_test.rego").write_text("package t\n")
    digests.add(read(folder).digest)
    (folder / "a.json").rename(folder / "b.json")
    digests.add(read(folder).digest)
    assert len(digests) == 4


def test_two_files_may_not_give_one_value(write: Write) -> None:
    found = refused(write({"lists/a.json": {"x": {"y": 1}}, "lists/b.json": {"x": {"y": 2}}}))
    assert (
        found == [("lists/b.json", 1, "data.lists.x.y is already given by lists/a.json")]
        or found[0][0] == "lists/b.json"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.rego", b'package a\n\nx := "\xff"\n', "not UTF-8"),
        ("bad.rego", b"\xef\xbb\xbfpackage a\n", "byte order mark"),
        ("bad.rego", b"package a\x00\n", "NUL"),
        ("bad.rego", b"#" * (MAX_REGO_BYTES + 1), "larger than 1 MiB"),
        ("bad.json", b"{", "not JSON"),
        ("bad.json", b"[1]", "no JSON object"),
        ("bad.json", b"[" * 100_000, "not JSON"),
        ("bad.yaml", b"a: 1\n", "YAML is not read"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(write: Write, name: str, content: bytes, message: str) -> None:
    (found,) = refused(write({f"sub/{name}": content}))
    assert found[0] == f"sub/{name}"
    assert message in found[2]


def test_the_place_of_a_byte_that_is_no_text_is_named(write: Write) -> None:
    ((_, line, _),) = refused(write({"bad.rego": b'package a\n\nx := "\xff"\n'}))
    assert line == 3


def test_a_link_out_of_the_folder_is_refused(write: Write, tmp_path: Path) -> None:
    folder = write({})
    (tmp_path / "secret.json").write_text('{"a": 1}')
    (tmp_path / "elsewhere").mkdir()
    (folder / "out.json").symlink_to("../secret.json")
    (folder / "dangling.json").symlink_to("nothing")
    (folder / "loop.json").symlink_to("loop.json")
    (folder / "directory").symlink_to("../elsewhere")
    assert {(name, message.partition("(")[0].strip()) for name, _, message in refused(folder)} == {
        ("out.json", "the link leaves the policy folder"),
        ("dangling.json", "cannot be read"),
        ("loop.json", "cannot be read"),
        ("directory", "a linked directory is not read"),
    }


def test_a_link_within_the_folder_is_followed(write: Write) -> None:
    folder = write({"lists/a.json": {"a": 1}, "more/b.json": {"b": 1}})
    (folder / "more" / "c.json").symlink_to("../lists/a.json")
    assert read(folder).data == {"lists": {"a": 1}, "more": {"a": 1, "b": 1}}


def test_a_pipe_does_not_hang_the_reader(write: Write) -> None:
    folder = write({})
    os.mkfifo(folder / "pipe.json")
    assert refused(folder) == [("pipe.json", 0, "not a regular file")]


def test_a_folder_without_rego_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path)[0][2] == "the folder holds no Rego file"
    assert "no policy folder here" in refused(tmp_path / "missing")[0][2]
    (tmp_path / "file").write_text("")
    assert "no policy folder here" in refused(tmp_path / "file")[0][2]


def test_outside_git_there_is_no_commit(write: Write) -> None:
    bundle = read(write({}))
    assert (bundle.commit, bundle.dirty) == (None, False)


def test_commit_and_dirty_flag(write: Write) -> None:
    folder = write({})
    git(folder.parent, "init", "-q")
    git(folder.parent, "add", ".")
    git(folder.parent, "commit", "-q", "-m", "first")
    head = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert (read(folder).commit, read(folder).dirty) == (head, False)
    (folder.parent / "beside.txt").write_text("not of the policy")
    assert not read(folder).dirty
    (folder / "new.rego").write_text("package lib.new\n")
    assert read(folder).dirty
    (folder / "new.rego").unlink()
    (folder / "sallyport.rego").write_text('package sallyport\n\ndefault_verdict := "deny"\n')
    assert (read(folder).commit, read(folder).dirty) == (head, True)


@pytest.fixture
def other_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make git take every work tree for somebody else's, as git's own tests do: no other user is needed."""
    real = subprocess.run

    def run(*args: Any, **keywords: Any) -> subprocess.CompletedProcess[Any]:
        if keywords.get("env"):
            keywords["env"] |= {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"}
        return real(*args, **keywords)

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.usefixtures("other_owner")
def test_a_work_tree_of_another_owner_has_a_commit(write: Write) -> None:
    folder = write({})
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    assert read(folder).commit is not None


@pytest.mark.parametrize("setting", ["filter.evil.clean", "filter.evil.process", "core.fsmonitor"])
def test_no_program_that_a_work_tree_names_is_run(write: Write, tmp_path: Path, setting: str) -> None:
    folder = write({})
    marker = tmp_path / "ran"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {marker}\ncat\n")
    program.chmod(0o755)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    (folder / ".gitattributes").write_text("*.rego filter=evil\n")
    git(folder, "config", setting, str(program))
    # As long as before: only its content tells that it changed.
    text = (folder / "sallyport.rego").read_text()
    (folder / "sallyport.rego").write_text(text.replace("allow", "wolla"))
    marker.unlink(missing_ok=True)
    bundle = read(folder)
    assert bundle.commit is not None
    assert bundle.dirty
    assert not marker.exists()
