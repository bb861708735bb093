"""Which package is taken for a kernel that was asked for, and what is said when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from vagrant.vm import kernels
from vagrant.vm.archive import Archive, Mirrors, Package, mirrors_among, parse_stanzas
from vagrant.vm.errors import NetworkError, RoomError, UsageError
from vagrant.vm.kernels import choose, in_line, obtain
from vagrant.vm.machine import emulated_cpu

ARCHIVE = [
    Package("linux-image-5.10.0-46-cloud-amd64", "5.10.262-1"),
    Package("linux-image-6.1.0-9-cloud-amd64", "6.1.27-1"),
    Package("linux-image-6.1.0-56-cloud-amd64", "6.1.192-2"),
    Package("linux-image-6.1.0-56-cloud-amd64-unsigned", "6.1.192-2"),
    Package("linux-image-6.1.0-56-cloud-amd64-dbg", "6.1.192-2"),
    Package("linux-image-6.12.117+deb12-cloud-amd64", "6.12.117-1~deb12u1"),
    Package("linux-image-7.3.4+deb13-cloud-amd64", "7.3.4-1~bpo13+1"),
    Package("linux-binary-7.3.4+deb13-cloud-amd64", "7.3.4-1~bpo13+1"),
    Package("linux-modules-7.3.4+deb13-cloud-amd64", "7.3.4-1~bpo13+1"),
    Package("linux-base-7.3.4+deb13-cloud-amd64", "7.3.4-1~bpo13+1"),
    Package("linux-modules-7.3.3+deb13-cloud-amd64", "7.3.3-1~bpo13+1"),
    Package("linux-image-cloud-amd64", "6.1.192-2"),
]


@pytest.mark.parametrize(
    ("wanted", "release"),
    [
        ("5.10", "5.10.0-46-cloud-amd64"),
        ("6.1", "6.1.0-56-cloud-amd64"),
        ("6.1.27", "6.1.0-9-cloud-amd64"),
        ("6.12", "6.12.117+deb12-cloud-amd64"),
        ("newest", "7.3.4+deb13-cloud-amd64"),
    ],
)
def test_the_newest_build_of_the_line_is_taken(wanted: str, release: str) -> None:
    assert choose(wanted, ARCHIVE)[0] == release


def test_a_kernel_that_comes_in_pieces_is_taken_with_all_of_them() -> None:
    _, packages = choose("newest", ARCHIVE)
    assert sorted(package.name.split("-")[1] for package in packages) == ["base", "binary", "image", "modules"]
    assert {package.version for package in packages} == {"7.3.4-1~bpo13+1"}


def test_a_kernel_that_the_archive_has_not_is_answered_with_those_that_it_has() -> None:
    with pytest.raises(UsageError, match=r"no kernel 4\.19") as caught:
        choose("4.19", ARCHIVE)
    assert "5.10, 6.1, 6.12, 7.3" in caught.value.hint


def test_a_line_is_not_a_prefix_of_letters() -> None:
    assert in_line("6.1", "6.1.192-2")
    assert not in_line("6.1", "6.12.117-1")


@pytest.mark.parametrize("word", ["", "new", "6", "6.1;reboot", "../6.1", "v6.1"])
def test_a_word_that_names_no_kernel_is_refused_before_anything_is_asked(word: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="names no kernel"):
        obtain(word, tmp_path, Archive(tmp_path / "apt"))


class Unreachable(Archive):
    def refresh(self) -> None:
        raise NetworkError("The archive cannot be reached.", hint="Check the network.")


def test_without_a_network_the_kernel_of_an_earlier_run_serves_and_that_is_said(tmp_path: Path) -> None:
    for release, version in (("6.1.0-9-cloud-amd64", "6.1.27"), ("6.1.0-56-cloud-amd64", "6.1.192")):
        (tmp_path / "kernels" / release).mkdir(parents=True)
        (tmp_path / "kernels" / release / "version").write_text(f"{version}\n")
    kernel, note = obtain("6.1", tmp_path, Unreachable(tmp_path / "apt"))
    assert kernel.release == "6.1.0-56-cloud-amd64"
    assert "cannot be reached" in note
    assert kernel.release in note


def test_without_a_network_and_without_a_kernel_it_is_the_network_that_is_named(tmp_path: Path) -> None:
    with pytest.raises(NetworkError):
        obtain("6.1", tmp_path, Unreachable(tmp_path / "apt"))


def test_a_full_disk_is_told_before_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ROOM_MEGABYTES", 1 << 40)
    with pytest.raises(RoomError, match="MB free"):
        obtain("6.1", tmp_path, Unreachable(tmp_path / "apt"))


def test_a_kernel_that_is_there_needs_no_room_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ROOM_MEGABYTES", 1 << 40)
    (tmp_path / "kernels/6.1.0-9-cloud-amd64").mkdir(parents=True)
    (tmp_path / "kernels/6.1.0-9-cloud-amd64/version").write_text("6.1.27\n")
    assert obtain("6.1", tmp_path, Unreachable(tmp_path / "apt"))[0].version == "6.1.27"


def test_the_emulated_processor_follows_the_kernel() -> None:
    assert emulated_cpu((6, 12, 117)) == "qemu64,-cx16"
    assert emulated_cpu((7, 3, 4)) == "qemu64"


def test_packages_are_read_from_stanzas() -> None:
    text = "Package: a\nVersion: 1.0-1\nDescription: Package: not this\n\nPackage: b\nVersion: 2\n\nPackage: half\n"
    assert parse_stanzas(text) == [Package("a", "1.0-1"), Package("b", "2")]


def test_the_mirror_is_the_one_that_this_machine_uses() -> None:
    assert mirrors_among(["http://m.example/ubuntu/"]) is None
    assert mirrors_among(["http://s.example/debian-security/", "http://m.example/debian/"]) == Mirrors(
        "http://m.example/debian", "http://s.example/debian-security"
    )
