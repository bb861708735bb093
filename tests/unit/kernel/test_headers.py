"""One tree of kernel headers out of the halves that distributions ship."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from engine.errors import KernelError
from engine.kernel import headers

ARCH = {"x86_64": "x86", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
MACHINE = {"x86": "amd64"}.get(ARCH, ARCH)


def half(folder: Path, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(str(folder / name))
    return folder


def debian(sources: Path, version: str) -> Path:
    half(sources / f"linux-headers-{version}-common", "include/uapi/linux/bpf.h", f"arch/{ARCH}/include/asm/page.h")
    return half(
        sources / f"linux-headers-{version}-{MACHINE}", "include/generated/autoconf.h",
        f"arch/{ARCH}/include/generated/asm/own.h",
    )  # fmt: skip


def find(root: Path) -> Path | None:
    return headers.find((root / "src", root / "more"), root / "modules", root / "cache")


def test_debians_two_halves_become_one_tree(tmp_path: Path) -> None:
    debian(tmp_path / "src", "6.1.0-9")
    merged = find(tmp_path)
    assert merged is not None
    assert merged.is_relative_to(tmp_path / "cache")
    for name in (
        "include/uapi/linux/bpf.h", "include/generated/autoconf.h", f"arch/{ARCH}/include/asm/page.h",
        f"arch/{ARCH}/include/generated/asm/own.h",
    ):  # fmt: skip
        assert (merged / name).read_text().endswith(name)


def test_ubuntus_two_halves_become_one_tree(tmp_path: Path) -> None:
    half(tmp_path / "src" / "linux-headers-6.8.0-31", "include/uapi/linux/bpf.h")
    half(tmp_path / "src" / "linux-headers-6.8.0-31-generic", "include/generated/autoconf.h")
    merged = find(tmp_path)
    assert merged is not None
    assert (merged / "include/uapi/linux/bpf.h").exists()
    assert (merged / "include/generated/autoconf.h").exists()


def test_the_newest_tree_is_taken_by_number_and_not_by_letter(tmp_path: Path) -> None:
    for version in ("6.1.0-9", "6.1.0-56", "5.10.0-30"):
        debian(tmp_path / "src", version)
    merged = find(tmp_path)
    assert merged is not None
    assert merged.name == f"linux-headers-6.1.0-56-{MACHINE}"


def test_trees_are_looked_for_in_every_place(tmp_path: Path) -> None:
    debian(tmp_path / "src", "6.1.0-9")
    debian(tmp_path / "more", "6.1.0-10")
    merged = find(tmp_path)
    assert merged is not None
    assert merged.name == f"linux-headers-6.1.0-10-{MACHINE}"


def test_a_merge_of_a_tree_that_was_removed_since_is_made_again(tmp_path: Path) -> None:
    debian(tmp_path / "src", "6.1.0-9")
    find(tmp_path)
    (tmp_path / "src").rename(tmp_path / "more")
    merged = find(tmp_path)
    assert merged is not None
    assert (merged / "include/uapi/linux/bpf.h").exists()


def test_a_tree_without_its_common_half_is_passed_over(tmp_path: Path) -> None:
    debian(tmp_path / "src", "6.1.0-9")
    half(tmp_path / "src" / f"linux-headers-6.5.0-1-{MACHINE}", "include/generated/autoconf.h")
    merged = find(tmp_path)
    assert merged is not None
    assert merged.name == f"linux-headers-6.1.0-9-{MACHINE}"


def test_a_merge_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    debian(tmp_path / "src", "6.1.0-9")
    merged = find(tmp_path)
    assert merged is not None
    (merged / "complete").unlink()
    (merged / "include/uapi/linux/bpf.h").unlink()
    assert find(tmp_path) == merged
    assert (merged / "include/uapi/linux/bpf.h").exists()


def test_a_whole_merge_is_left_as_it_is(tmp_path: Path) -> None:
    debian(tmp_path / "src", "6.1.0-9")
    merged = find(tmp_path)
    assert merged is not None
    (merged / "mark").touch()
    assert find(tmp_path) == merged
    assert (merged / "mark").exists()


def test_the_running_kernels_own_headers_come_first(tmp_path: Path) -> None:
    debian(tmp_path / "src", "6.1.0-9")
    half(tmp_path / "modules" / platform.release() / "build", "include/linux/version.h")
    assert find(tmp_path) is None


def test_without_any_headers_the_error_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(KernelError) as caught:
        find(tmp_path)
    assert "apt install" in caught.value.hint
