"""Cgroup ids as paths, units and containers; units that a user cannot claim."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.errors import KernelError
from engine.model.facts import Cgroup
from engine.runtime.cgroups import CgroupTable, describe, find_mount

ID = "0123456789abcdef" * 4
OTHER = "f" * 64


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("path", "unit", "container"),
    [
        ("/", "", ""),
        ("/system.slice/nginx.service", "nginx.service", ""),
        ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service", ""),
        ("/system.slice/nginx.service/worker/deep", "nginx.service", ""),
        ("/init.scope", "init.scope", ""),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope", ""),
        (f"/system.slice/docker-{ID}.scope", f"docker-{ID}.scope", ID),
        (f"/machine.slice/libpod-{ID}.scope/container", f"libpod-{ID}.scope", ID),
        (f"/docker/{ID}", "", ID),
        (f"/kubepods/burstable/pod4e1f/{ID}", "", ID),
        (f"/kubepods.slice/kubepods-pod4e1f.slice/cri-containerd-{ID}.scope", f"cri-containerd-{ID}.scope", ID),
        (f"/kubepods.slice/kubepods-pod4e1f.slice/crio-{ID}.scope", f"crio-{ID}.scope", ID),
        (f"/system.slice/containerd.service/kubepods-pod4e1f.slice:cri-containerd:{ID}", "containerd.service", ID),
        (f"/machine.slice/libpod-conmon-{ID}.scope", f"libpod-conmon-{ID}.scope", ""),
        (f"/docker/{ID[:-1]}", "", ""),
        (f"/docker/{ID.upper()}", "", ""),
    ],
)
def test_units_and_containers_of_the_common_layouts(path: str, unit: str, container: str) -> None:
    assert describe(path) == Cgroup(path, unit, container)


@pytest.mark.parametrize(
    ("path", "unit", "container"),
    [
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service", "user@1000.service", ""),
        (f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope", "user@1000.service", ""),
        (f"/system.slice/docker-{ID}.scope/system.slice/nginx.service", f"docker-{ID}.scope", ID),
        (f"/docker/{ID}/docker/{OTHER}", "", ID),
        ("/docker/nginx.service", "", ""),
    ],
)
def test_a_name_given_below_a_delegated_cgroup_claims_nothing(path: str, unit: str, container: str) -> None:
    assert describe(path) == Cgroup(path, unit, container)


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    folder = tmp_path / "cgroup"
    (folder / "system.slice" / "nginx.service").mkdir(parents=True)
    (folder / "user.slice").mkdir()
    return folder


def test_an_id_is_found_by_walking_and_the_root_is_one_too(mount: Path) -> None:
    table = CgroupTable(mount, proc="/nonexistent")
    inode = (mount / "system.slice" / "nginx.service").stat().st_ino
    assert table.lookup(inode) == Cgroup("/system.slice/nginx.service", "nginx.service", "")
    assert table.lookup(mount.stat().st_ino).path == "/"
    assert table.lookup(2**60) == Cgroup()


def test_a_newcomer_is_found_through_its_process_without_a_walk_and_a_wrong_process_is_not_believed(
    mount: Path, tmp_path: Path
) -> None:
    clock = Clock()
    proc = tmp_path / "proc"
    table = CgroupTable(mount, proc=str(proc), clock=clock)
    assert table.lookup(2**60) == Cgroup()
    new = mount / "system.slice" / "new.service"
    new.mkdir()
    for pid, path in ((7, "/system.slice/new.service"), (8, "/user.slice"), (9, "/../../etc")):
        (proc / str(pid)).mkdir(parents=True)
        (proc / str(pid) / "cgroup").write_text(f"12:cpu:/x\n0::{path}\n")
    inode = new.stat().st_ino
    assert table.lookup(inode) == Cgroup()
    for wrong in (8, 9, 10, 0):
        assert table.lookup(inode, wrong) == Cgroup()
    assert table.lookup(inode, 7).unit == "new.service"
    assert table.lookup(inode).unit == "new.service"


def test_walks_are_bounded_in_rate_and_removed_cgroups_are_remembered(mount: Path) -> None:
    clock = Clock()
    table = CgroupTable(mount, proc="/nonexistent", interval=1, clock=clock)
    gone = mount / "system.slice" / "nginx.service"
    inode = gone.stat().st_ino
    assert table.lookup(inode).unit == "nginx.service"
    new = mount / "late.service"
    new.mkdir()
    assert table.lookup(new.stat().st_ino) == Cgroup()
    gone.rmdir()
    clock.now = 1.0
    assert table.lookup(new.stat().st_ino).unit == "late.service"
    assert table.lookup(inode).unit == "nginx.service"


def test_the_table_is_bounded(mount: Path) -> None:
    for number in range(20):
        (mount / f"{number}.service").mkdir()
    table = CgroupTable(mount, proc="/nonexistent", capacity=5)
    table.lookup(2**60)
    assert len(table._known) == 5


def test_a_mount_that_is_not_there_knows_nothing(tmp_path: Path) -> None:
    assert CgroupTable(tmp_path / "absent").lookup(1) == Cgroup()


def test_the_mount_is_found_wherever_it_is() -> None:
    hybrid = (
        "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
        "40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 master:2 - cgroup2 cgroup2 rw\n"
    )
    assert find_mount(hybrid) == Path("/sys/fs/cgroup/unified")
    part = "50 31 0:38 /docker/x /mnt/a\\040b rw - cgroup2 cgroup2 rw\n"
    assert find_mount(part) == Path("/mnt/a b")
    assert find_mount(part + hybrid) == Path("/sys/fs/cgroup/unified")
    with pytest.raises(KernelError, match="No cgroup2") as caught:
        find_mount("garbage\n\n- \n")
    assert "mount -t cgroup2" in caught.value.hint


def test_this_process_is_found_on_the_real_mount() -> None:
    table = CgroupTable(find_mount(Path("/proc/self/mountinfo").read_text()))
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    path = next(line[3:] for line in lines if line.startswith("0::"))
    mount = find_mount(Path("/proc/self/mountinfo").read_text())
    inode = Path(f"{mount}{path}").stat().st_ino
    assert table.lookup(inode, os.getpid()).path == path
    assert CgroupTable(mount).lookup(inode).path == path
