"""Users by the file alone."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from engine.model.facts import User
from engine.runtime.users import Users, parse_passwd


def test_names_come_from_the_file_and_follow_its_changes(tmp_path: Path) -> None:
    passwd = tmp_path / "passwd"
    passwd.write_text("root:x:0:0:root:/root:/bin/sh\nwww:x:33:33::/var/www:/bin/false\ntoor:x:0:0::/:/bin/sh\n")
    users = Users(passwd)
    assert users.lookup(0) == User(0, "root")
    assert users.lookup(33) == User(33, "www")
    assert users.lookup(1000) == User(1000, "")
    replacement = tmp_path / "passwd.new"
    replacement.write_text("alice:x:1000:1000::/home/alice:/bin/sh\n")
    replacement.rename(passwd)
    assert users.lookup(1000) == User(1000, "alice")
    assert users.lookup(33) == User(33, "")
    passwd.unlink()
    assert users.lookup(1000) == User(1000, "")


def test_root_is_root_here() -> None:
    assert Users().lookup(0) == User(0, "root")


@given(st.binary(max_size=300))
def test_any_bytes_are_some_users(data: bytes) -> None:
    assert all(uid >= 0 and name for uid, name in parse_passwd(data).items())
