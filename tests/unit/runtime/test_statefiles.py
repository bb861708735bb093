"""What an engine leaves for the next one, and the lock that keeps a directory to one engine."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from engine.errors import StateError
from engine.runtime import statefiles
from engine.runtime.identity import ExeRecord
from engine.runtime.statefiles import Standing, StateDir, boot_id

RECORDS = [ExeRecord(3, "/usr/bin/curl", 1, 2, 3, 4), ExeRecord(9, "/opt/b\udcfccher", 5, 6, 7, 8)]


def test_the_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "a" / "state")
    assert stat.S_IMODE(state.path.stat().st_mode) == 0o700
    assert (state.control, state.orders) == (state.path / "control.sock", state.path / "orders.json")
    state.close()


def test_one_engine_at_a_time(tmp_path: Path) -> None:
    first = StateDir(tmp_path)
    with pytest.raises(StateError, match="Another engine uses the state directory") as caught:
        StateDir(tmp_path)
    assert "--state-dir" in caught.value.hint
    first.close()
    StateDir(tmp_path).close()


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be used"):
        StateDir(tmp_path / "file" / "state")


def test_what_is_written_is_found_by_the_next_engine(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    assert (state.standing(), state.executables()) == (None, [])
    state.write_standing(7, "abc", "enforce")
    state.write_executables(RECORDS)
    state.close()
    after = StateDir(tmp_path)
    assert after.standing() == Standing(boot_id(), 7, "abc", "enforce")
    assert [(one.id, one.path) for one in after.executables()] == [(one.id, one.path) for one in RECORDS]
    assert after.executables() == RECORDS
    after.close()


def test_what_was_written_before_the_last_boot_is_worthless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateDir(tmp_path)
    state.write_standing(7, "abc", "enforce")
    state.write_executables(RECORDS)
    monkeypatch.setattr(statefiles, "boot_id", lambda: "another boot")
    assert (state.standing(), state.executables()) == (None, [])
    state.close()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe", b"7", b"[]", b"null", b'{"boot": "BOOT"}', b'{"boot": "BOOT", "executables": 7}',
        b'{"boot": "BOOT", "executables": ["x"]}', b'{"boot": "BOOT", "executables": [{"id": 1}]}',
        b'{"boot": "BOOT", "executables": [{"id": "1", "path": "/a", "dev": 1, "inode": 1, "mtime_ns": 1, '
        b'"ctime_ns": 1}]}',
        b'{"boot": "BOOT", "number": "7", "digest": "abc", "mode": "enforce"}',
        b'{"boot": "BOOT", "number": 7, "digest": "abc"}',
    ],
)  # fmt: skip
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    state = StateDir(tmp_path)
    for name in ("generation.json", "executables.json"):
        (tmp_path / name).write_bytes(content.replace(b"BOOT", boot_id().encode()))
    assert (state.standing(), state.executables()) == (None, [])
    state.close()


def test_a_write_that_fails_is_said_and_leaves_what_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateDir(tmp_path)
    state.write_standing(7, "abc", "enforce")
    (tmp_path / "generation.json.new").mkdir()
    with pytest.raises(StateError, match=r"generation\.json cannot be written"):
        state.write_standing(8, "def", "enforce")
    standing = state.standing()
    assert standing is not None
    assert standing.number == 7
    state.close()


def test_a_write_is_on_the_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut the file is the old one or the new one, never an empty one."""
    synced: list[bool] = []
    monkeypatch.setattr("os.fsync", lambda _: synced.append((tmp_path / "generation.json").exists()))
    state = StateDir(tmp_path)
    state.write_standing(7, "abc", "enforce")
    assert synced == [False]
    assert json.loads((tmp_path / "generation.json").read_text())["number"] == 7
    state.close()
