"""The key files: made once, used only when nobody else can have read them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from audit import keys
from audit.errors import KeyFileError


def test_a_pair_is_made_with_the_private_half_for_its_owner_alone(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        key = keys.create(tmp_path, "sallyport/test")
    finally:
        os.umask(previous)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "key.pub").read_text() == f"{key.verifier}\n"
    assert keys.load_private(tmp_path).verifier == key.verifier == keys.load_public(tmp_path / "key.pub")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "key.pub"]


def test_every_pair_is_another(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    assert keys.create(tmp_path / "one", "x").verifier != keys.create(tmp_path / "other", "x").verifier
    assert keys.default_origin() != keys.default_origin()


def test_a_key_is_never_replaced(tmp_path: Path) -> None:
    keys.create(tmp_path, "x")
    before = (tmp_path / "key.pub").read_bytes()
    with pytest.raises(KeyFileError, match="already"):
        keys.create(tmp_path, "x")
    assert (tmp_path / "key.pub").read_bytes() == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o601, 0o666])
def test_a_private_key_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    keys.create(tmp_path, "x")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(KeyFileError) as caught:
        keys.load_private(tmp_path)
    assert f"mode {mode:04o}" in caught.value.message
    assert "chmod 600" in caught.value.hint
    assert caught.value.exit_code == 8


def test_a_private_key_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys.create(tmp_path, "x")
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    with pytest.raises(KeyFileError, match=r"belongs to user \d+, not to 4321"):
        keys.load_private(tmp_path)


def test_a_link_or_a_pipe_is_no_key(tmp_path: Path) -> None:
    keys.create(tmp_path, "x")
    (tmp_path / "key").rename(tmp_path / "elsewhere")
    (tmp_path / "key").symlink_to("elsewhere")
    with pytest.raises(KeyFileError, match="cannot be opened"):
        keys.load_private(tmp_path)
    (tmp_path / "key").unlink()
    os.mkfifo(tmp_path / "key", 0o600)
    with pytest.raises(KeyFileError, match="no regular file"):
        keys.load_private(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff\n", b"PRIVATE+KEY+x\n", b"two\nlines\n", b"no newline"])
def test_a_damaged_key_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    keys.create(tmp_path, "x")
    for name, load in (
        ("key", lambda: keys.load_private(tmp_path)),
        ("key.pub", lambda: keys.load_public(tmp_path / "key.pub")),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(KeyFileError, match="is damaged"):
            load()


def test_missing_keys_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="No such file"):
        keys.load_private(tmp_path)
    with pytest.raises(KeyFileError, match="No such file"):
        keys.load_public(tmp_path / "key.pub")
    with pytest.raises(KeyFileError, match="cannot be written"):
        keys.create(tmp_path / "nowhere", "x")
