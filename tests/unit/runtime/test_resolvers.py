"""Whose answers are believed: the configured resolvers, or those of the system as it is now."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

import pytest

from engine.runtime.resolvers import Resolvers
from tests.support.lookups import key


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "resolv.conf", tmp_path / "behind.conf"


def found(files: tuple[Path, Path]) -> frozenset[bytes]:
    return Resolvers(file=files[0], behind=files[1])()


def test_the_system_s_resolvers_are_believed(files: tuple[Path, Path]) -> None:
    files[0].write_text(
        "# c\nsearch example\nnameserver 192.0.2.53\nnameserver 2001:db8::53\nnameserver fe80::1%eth0\n"
    )
    files[1].write_text("nameserver 203.0.113.53\n")
    assert found(files) == {key("192.0.2.53"), key("2001:db8::53"), key("fe80::1")}


@pytest.mark.parametrize("stub", ["127.0.0.53", "::1", "::ffff:127.0.0.1"])
def test_behind_a_stub_are_the_ones_that_it_asks(files: tuple[Path, Path], stub: str) -> None:
    files[0].write_text(f"nameserver {stub}\n")
    files[1].write_text("nameserver 203.0.113.53\n")
    assert found(files) == {key(stub), key("203.0.113.53")}


def test_those_that_are_configured_are_the_only_ones(files: tuple[Path, Path]) -> None:
    files[0].write_text("nameserver 192.0.2.53\n")
    assert Resolvers([ipaddress.ip_address("192.0.2.1")], file=files[0], behind=files[1])() == {key("192.0.2.1")}


def test_a_change_of_either_file_is_followed(files: tuple[Path, Path]) -> None:
    resolvers = Resolvers(file=files[0], behind=files[1])
    assert resolvers() == set()
    files[0].write_text("nameserver 127.0.0.53\n")
    assert resolvers() == {key("127.0.0.53")}
    files[1].write_text("nameserver 192.0.2.1\n")
    assert resolvers() == {key("127.0.0.53"), key("192.0.2.1")}
    new = files[0].with_suffix(".new")
    new.write_text("nameserver 192.0.2.77\n")
    new.replace(files[0])
    assert resolvers() == {key("192.0.2.77")}
    files[0].unlink()
    assert resolvers() == set()


def test_what_has_not_changed_is_not_read_again(files: tuple[Path, Path]) -> None:
    files[0].write_text("nameserver 192.0.2.53\n")
    resolvers = Resolvers(file=files[0], behind=files[1])
    first = resolvers()
    status = files[0].stat()
    files[0].write_text("nameserver 192.0.2.54\n")
    os.utime(files[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert resolvers() is first


def test_what_cannot_be_read_names_nobody(files: tuple[Path, Path]) -> None:
    files[0].mkdir()
    assert found(files) == set()
    files[0].rmdir()
    files[0].write_bytes(b"nameserver \xff\nnameserver x\nnameserver\n")
    assert found(files) == set()
