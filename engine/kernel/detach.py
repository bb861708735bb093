"""Take a gate down: from its pins and its record alone, with no engine and no configuration.

The first step is one map write that makes every program pass everything: whatever follows, and even where a network
namespace can no longer be reached, nothing is held or dropped any more.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from engine.abi.numbers import Mode
from engine.abi.records import Config
from engine.errors import SallyportError
from engine.kernel import attach, filters, libbpf, netns
from engine.kernel.netlink import links, netlink
from engine.kernel.order import Detached
from engine.kernel.pins import Pins, Record, netns_inode


def detach(pins: Pins) -> Detached:
    """Let everything pass, then remove filters, XDP, links, hold device and pins. Problems are told, not raised:
    each step is tried whatever became of the one before."""
    done = Detached(pins.instance)
    pass_everything(pins)
    record: Record | None = None
    try:
        record = Record.read(pins.record) if pins.record.exists() else None
    except SallyportError as error:
        done.problems.append(error.message)
    ours = frozenset(_program_ids(pins))
    try:
        _in_netns(record.netns if record else netns_inode(), lambda: _detach_links(pins, ours, done))
    except Exception as error:  # noqa: BLE001 - whatever went wrong, the pins must go
        done.problems.append(str(error))
    try:
        pins.remove()
        pins.record.unlink(missing_ok=True)
    except OSError as error:
        done.problems.append(str(error))
    return done


def pass_everything(pins: Pins) -> None:
    """Make every program of this instance pass everything: one map write. Does nothing where no map is pinned."""
    with contextlib.suppress(OSError):
        config = libbpf.obj_get(pins.maps / "config")
        value = ctypes.create_string_buffer(libbpf.map_info(config).value_size)
        key = bytes(4)
        libbpf.map_lookup(config, key, value)
        libbpf.map_update(config, key, Config.unpack(value.raw)._replace(mode=Mode.PANIC).pack())
        os.close(config)


def _program_ids(pins: Pins) -> list[int]:
    ids = []
    for pin in pins.programs.glob("*"):
        with contextlib.suppress(OSError):
            fd = libbpf.obj_get(pin)
            ids.append(int(libbpf.program_info(fd).id))
            os.close(fd)
    return ids


def _detach_links(pins: Pins, ours: frozenset[int], done: Detached) -> None:
    """Every interface is looked at, whatever the record and the maps say was guarded: one that appeared a moment before
    the engine died may stand in neither."""
    with netlink("detach the gate") as ip:
        for link in links(ip):
            if link.name in (pins.hold_device, pins.held_device):
                continue
            try:
                removed = filters.unguard(ip, link.index, ours)
                removed = attach.detach_xdp(link.index, ours) or removed
            except (SallyportError, OSError) as error:
                # One that went meanwhile took its filters along.
                if any(present.index == link.index for present in links(ip)):
                    done.problems.append(f"interface {link.name}: {error}")
                continue
            if removed:
                done.interfaces.append(str(link.index))
    attach.remove_hold_device(pins)


def _in_netns(inode: int, work: Callable[[], None]) -> None:
    """Run `work` in the network namespace with this inode number."""
    if inode == netns_inode():
        work()
        return
    path = _netns_path(inode)
    if path is None:
        return  # the namespace is gone, and with it every interface and filter in it
    with path.open("rb") as namespace:
        netns.within(namespace.fileno(), work)


def _netns_path(inode: int) -> Path | None:
    candidates = [*Path("/run/netns").glob("*"), *Path("/proc").glob("[0-9]*/ns/net")]
    for path in candidates:
        with contextlib.suppress(OSError):
            if path.stat().st_ino == inode:
                return path
    return None
