"""What Vagrant leaves in libvirt's pool goes again, and nothing that was there before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vagrant.vm import vagrantfile

_VIRSH = """#!/bin/sh
# virsh --connect URI vol-list POOL, or vol-delete --pool POOL NAME; the pool is a folder.
case $3 in
    vol-list) printf ' Name   Path\\n-----\\n'; ls "$0.pool" | sed "s|.*|& /images/&|" ;;
    vol-delete) rm "$0.pool/$6" ;;
esac
"""


def test_a_boxs_disk_that_came_goes_and_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "virsh").write_text(_VIRSH)
    (tmp_path / "virsh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    pool = tmp_path / "virsh.pool"
    pool.mkdir()
    for name in ("mine.img", "a_vagrant_box_image_0_box.img"):
        (pool / name).touch()
    with vagrantfile._volumes_as_before():
        for name in ("b_vagrant_box_image_0_box.img", "somebody-elses.img"):
            (pool / name).touch()
    assert sorted(one.name for one in pool.iterdir()) == [
        "a_vagrant_box_image_0_box.img",
        "mine.img",
        "somebody-elses.img",
    ]
