"""Pins and records: one instance for each state directory, found again without the engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.abi.numbers import ABI
from engine.errors import KernelError
from engine.kernel import pins as pins_module
from engine.kernel.pins import Pins, Record, instances

IFNAMSIZ = 16
"""net/if.h, with the NUL."""


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pins_module, "BPFFS", tmp_path / "bpf")
    monkeypatch.setattr(pins_module, "RECORDS", tmp_path / "run")
    return tmp_path


def test_a_state_directory_names_one_instance_however_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "state")
    assert Pins.of(tmp_path / "state") == Pins.of(tmp_path / "link") == Pins.of(tmp_path / "x" / ".." / "state")
    assert Pins.of(tmp_path / "state") != Pins.of(tmp_path / "other")


def test_device_names_fit_the_kernel(tmp_path: Path) -> None:
    pins = Pins.of(tmp_path)
    assert len(pins.hold_device) < IFNAMSIZ
    assert len(pins.held_device) < IFNAMSIZ
    assert pins.hold_device != pins.held_device


def test_maps_of_another_layout_are_never_opened(places: Path) -> None:
    assert Pins("12345678").root.name == f"12345678-abi{ABI}"
    assert Pins("12345678").maps.is_relative_to(places / "bpf")


def test_pins_are_made_and_removed_whole(places: Path) -> None:
    pins = Pins("12345678")
    pins.make()
    pins.make()
    for folder in (pins.maps, pins.programs, pins.links):
        (folder / "pin").touch()
    other = Pins("87654321")
    other.make()
    pins.remove()
    pins.remove()
    assert not pins.root.exists()
    assert other.maps.exists()
    other.remove()
    assert not (places / "bpf" / "sallyport").exists()


def test_a_record_is_read_back(places: Path) -> None:
    record = Record("12345678", "/var/lib/x", 4026531840, ["eth0", "eth1"], "/sys/fs/cgroup/x", "enforce", 77)
    path = Pins("12345678").record
    record.write(path)
    record.write(path)
    assert Record.read(path) == record
    assert [entry.name for entry in path.parent.iterdir()] == ["12345678.json"]
    assert path.is_relative_to(places)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"instance": "x"}', '{"unknown": 1}', "null"])
def test_a_damaged_record_is_said_to_be(tmp_path: Path, text: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(KernelError, match="damaged"):
        Record.read(path)


def test_instances_are_found_by_pins_or_by_record(places: Path) -> None:
    Pins("aaaaaaaa").make()
    Record("bbbbbbbb", "/x", 1).write(Pins("bbbbbbbb").record)
    Pins("cccccccc").make()
    Record("cccccccc", "/x", 1).write(Pins("cccccccc").record)
    assert [pins.instance for pins in instances()] == ["aaaaaaaa", "bbbbbbbb", "cccccccc"]
    assert places.exists()
