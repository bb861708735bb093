"""The archive that the kernel unpacks, and the order in which modules are loaded."""

from __future__ import annotations

import lzma

from hypothesis import given
from hypothesis import strategies as st

from vagrant.vm.initramfs import (
    Member,
    directory,
    file,
    kernel_part,
    link,
    load_order,
    newc,
    parse_builtin,
    parse_dependencies,
)


def unpacked(archive: bytes) -> list[Member]:
    """Read archives joined end to end, as the kernel does: by the format's text, not by the writer's code."""
    found: list[Member] = []
    at = 0
    while at < len(archive):
        if archive[at] == 0:
            at += 1
            continue
        assert at % 4 == 0
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name_end = at + 110 + name_size
        assert archive[name_end - 1] == 0
        data = name_end + (-name_end % 4)
        name = archive[at + 110 : name_end - 1].decode()
        if name != "TRAILER!!!":
            found.append(Member(name, mode, archive[data : data + size]))
        at = data + size
        at += -at % 4
    return found


names = st.text("abcdef/.-_0123456789", min_size=1, max_size=40)
members = st.lists(st.builds(file, names, st.binary(max_size=600), executable=st.booleans()), max_size=6)


@given(members, members)
def test_two_archives_end_to_end_are_read_as_one(first: list[Member], second: list[Member]) -> None:
    assert unpacked(newc(first) + newc(second)) == first + second


def test_kinds_of_files_are_told_apart() -> None:
    modes = [member.mode & 0o170000 for member in unpacked(newc([directory("a"), file("b", b"x"), link("c", "b")]))]
    assert modes == [0o040000, 0o100000, 0o120000]


DEPENDENCIES = parse_dependencies(
    "kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio_modern.ko kernel/drivers/virtio/virtio.ko\n"
    "kernel/drivers/virtio/virtio_modern.ko: kernel/drivers/virtio/virtio.ko\n"
    "kernel/drivers/virtio/virtio.ko:\n"
    "kernel/drivers/char/hw_random/virtio-rng.ko.xz: kernel/drivers/virtio/virtio.ko\n"
)


def test_a_module_is_loaded_after_what_it_needs_and_once() -> None:
    order = load_order(("virtio_pci", "virtio_rng"), DEPENDENCIES, frozenset())
    assert order == [
        "kernel/drivers/virtio/virtio.ko",
        "kernel/drivers/virtio/virtio_modern.ko",
        "kernel/drivers/virtio/virtio_pci.ko",
        "kernel/drivers/char/hw_random/virtio-rng.ko.xz",
    ]


def test_what_is_in_the_kernel_itself_is_not_loaded() -> None:
    builtin = parse_builtin("kernel/drivers/virtio/virtio_pci.ko\nkernel/fs/ext4/ext4.ko\n")
    assert load_order(("virtio_pci", "ext4", "overlay"), DEPENDENCIES, builtin) == []


def test_modules_are_unpacked_for_insmod_and_keep_their_order() -> None:
    part = kernel_part(b"box", [("kernel/a/first.ko", b"1"), ("kernel/b/second-one.ko.xz", lzma.compress(b"2"))])
    found = {member.path: member.data for member in unpacked(part)}
    assert found["modules/00-first.ko"] == b"1"
    assert found["modules/01-second_one.ko"] == b"2"
    assert found["bin/sh"] == b"busybox"
