"""The loader: carry out an order. Programs into the kernel, pinned, attached; whole or not at all.

Over a standing gate every program is replaced in place. On a first start that fails half way, everything that was
attached is detached again: nothing is left half attached.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import time
from pathlib import Path

from pyroute2 import IPRoute

from engine.errors import InterfaceError, KernelError, PrivilegeError, SallyportError
from engine.kernel import attach, bpf, filters, libbpf
from engine.kernel.detach import detach
from engine.kernel.install import load_programs, open_maps
from engine.kernel.links import is_inside, kind_of, to_guard
from engine.kernel.maps import Map
from engine.kernel.netlink import links, netlink
from engine.kernel.objects import Unit
from engine.kernel.order import Loaded, Order
from engine.kernel.pins import Pins, Record, netns_inode, require_bpffs
from engine.kernel.programs import PROGRAMS, Hook, Program
from engine.kernel.supply import Supply

_OLDEST = (5, 10)


def load(order: Order, supply: Supply) -> Loaded:
    """Carry out an order with these programs. Raises an error of the engine's family."""
    started = time.monotonic()
    if os.geteuid() != 0:
        raise PrivilegeError("Loading kernel programs needs root", hint="Run it with sudo.")
    _require_kernel(platform.release())
    require_bpffs()
    pins = Pins.of(Path(order.state_dir))
    loaded = Loaded(taken_over=(pins.programs / "gate_egress").exists())
    # Everything that can be refused is refused before anything is touched.
    with netlink("list the interfaces") as ip:
        loaded.interfaces = {link.name: link.index for link in to_guard([*order.interfaces, *order.inside], links(ip))}
    cgroup = _open_cgroup(order.cgroup)
    try:
        units = supply.units()
        loaded.seconds["programs"] = round(time.monotonic() - started, 3)
        before = dict(_standing_programs(pins))
        pins.make()
        Record(
            pins.instance, order.state_dir, netns_inode(), order.interfaces, order.cgroup, order.mode, order.pid
        ).write(pins.record)
        bpf.lift_memory_limit()
        fds = _load(units, pins, supply)
        loaded.seconds["loaded"] = round(time.monotonic() - started, 3)
        _attach_all(order, pins, loaded, fds, before, cgroup)
    except BaseException:
        if not loaded.taken_over:
            with contextlib.suppress(SallyportError, OSError):
                detach(pins)
        raise
    finally:
        os.close(cgroup)
    loaded.seconds["total"] = round(time.monotonic() - started, 3)
    loaded.headers, loaded.compiled_because = supply.headers, supply.compiled_because
    loaded.not_kept_because = supply.keep()
    return loaded


def _load(units: tuple[Unit, ...], pins: Pins, supply: Supply) -> dict[str, int]:
    """Bring the programs into the kernel. A kept one that is refused is compiled again before that counts as an error:
    the release that it was made for may be the name of another kernel by now."""
    shared = open_maps(units, pins)
    try:
        return load_programs(units, shared)
    except KernelError:
        if supply.compiled_because:
            raise
    return load_programs(supply.compiled_anew(), shared)


def _require_kernel(release: str) -> None:
    """Ring buffer, socket storage in TC, cgroup links and coarse enough verifiers: all there since 5.10."""
    found = re.match(r"(\d+)\.(\d+)", release)
    if found and (int(found[1]), int(found[2])) < _OLDEST:
        raise KernelError(
            f"Kernel {release} is too old for the gate", hint="Linux 5.10 or newer is needed: Debian 11, Ubuntu 22.04."
        )


def _open_cgroup(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise KernelError(
            f"The control group {path} cannot be opened: {error.strerror}",
            hint="Give the path of a cgroup v2 directory with --cgroup.",
        ) from error
    if not (Path(path) / "cgroup.procs").exists():
        os.close(fd)
        raise KernelError(f"{path} is no cgroup v2 directory", hint="Give one below the cgroup2 mount with --cgroup.")
    return fd


def _standing_programs(pins: Pins) -> list[tuple[str, int]]:
    return [(pin.name, libbpf.obj_get(pin)) for pin in sorted(pins.programs.glob("*"))]


def _attach_all(
    order: Order, pins: Pins, loaded: Loaded, fds: dict[str, int], before: dict[str, int], cgroup: int
) -> None:
    """Identity first, then the gate, the sources last: a packet judged before its socket is known could only be held.

    The pins are written before the attachments, and those of the programs before stay until all is done: whatever
    fails in between, a detach or the next try finds by them which attached programs are ours.
    """
    standing = {int(libbpf.program_info(fd).id): fd for fd in before.values()}
    ours = frozenset((*standing, *(int(libbpf.program_info(fd).id) for fd in fds.values())))
    for number, fd in standing.items():
        libbpf.obj_pin(fd, pins.programs / f"before_{number}")
    loaded.hold_ifindex, loaded.held_ifindex = attach.make_hold_device(pins)
    for program in PROGRAMS:
        fd = fds[program.name]
        info = libbpf.program_info(fd)
        loaded.programs[program.name] = {
            "id": int(info.id),
            "instructions": int(info.xlated_prog_len) // 8,
            "verified": int(info.verified_insns),
        }
        libbpf.obj_pin(fd, pins.programs / program.name)
    for program in PROGRAMS:
        fd = fds[program.name]
        if program.hook is Hook.CGROUP:
            _link_cgroup(pins, program, fd, cgroup)
        elif program.hook is Hook.TRACEPOINT:
            # No update for this kind of link: the new one is attached before the old one goes with its pin.
            link = libbpf.raw_tracepoint_open(program.tracepoint, fd)
            libbpf.obj_pin(link, pins.links / program.name)
    _write_interfaces(order, pins, loaded)
    with netlink("attach the filters") as ip:
        for name, parent in (("gate_discard", filters.Parent.INGRESS), ("gate_release", filters.Parent.EGRESS)):
            filters.attach_filter(ip, loaded.held_ifindex, parent, fds[name], name, ours)
        for name, index in list(loaded.interfaces.items()):
            _guard(ip, order, loaded, name, fds, ours)
            if name not in loaded.interfaces or is_inside(name, order.inside):
                continue
            loaded.xdp[name] = "off"
            if order.xdp != "off" and (number := attach.standing_xdp(index, ours)):
                loaded.xdp[name] = attach.replace_xdp(index, fds["gate_source"], standing.get(number))
        # Behind the gates, because what it lets through has their mark.
        filters.attach_filter(ip, loaded.hold_ifindex, filters.Parent.EGRESS, fds["gate_hold"], "gate_hold", ours)
    _let_go(pins, loaded, ours)
    for pin in pins.programs.glob("before_*"):
        pin.unlink()


def _guard(ip: IPRoute, order: Order, loaded: Loaded, name: str, fds: dict[str, int], ours: frozenset[int]) -> None:
    """Put the filters onto an interface. One that only a pattern speaks of may have gone again meanwhile."""
    try:
        filters.guard(ip, loaded.interfaces[name], fds, ours, inside=is_inside(name, order.inside))
    except InterfaceError:
        if name in (*order.interfaces, *order.inside) or any(link.name == name for link in links(ip)):
            raise
        del loaded.interfaces[name]


def _let_go(pins: Pins, loaded: Loaded, ours: frozenset[int]) -> None:
    """Detach from interfaces that were guarded and are so no longer."""
    guarded = Map(pins.maps / "interfaces")
    with netlink("detach the filters") as ip:
        for key in list(guarded.walk()):
            index = int.from_bytes(key, "little")
            if index not in loaded.interfaces.values():
                with contextlib.suppress(KernelError, InterfaceError):  # the interface itself is gone
                    filters.unguard(ip, index, ours)
                    attach.detach_xdp(index, ours)
                guarded.remove(key)
    guarded.close()


def _link_cgroup(pins: Pins, program: Program, fd: int, cgroup: int) -> None:
    pin = pins.links / program.name
    try:
        standing = libbpf.obj_get(pin)
    except FileNotFoundError:
        standing = -1
    if standing >= 0:
        # Another control group than before, or the one before is gone: a new link takes the pin's name, and the old
        # one ends with it.
        same = libbpf.link_cgroup(standing) == os.fstat(cgroup).st_ino
        if same:
            libbpf.link_update(standing, fd)
        os.close(standing)
        if same:
            return
    libbpf.obj_pin(libbpf.link_create(fd, cgroup, program.attach_type), pin)


def _write_interfaces(order: Order, pins: Pins, loaded: Loaded) -> None:
    interfaces = libbpf.obj_get(pins.maps / "interfaces")
    for name, index in loaded.interfaces.items():
        libbpf.map_update(
            interfaces, index.to_bytes(4, "little"), int(kind_of(name, order.inside)).to_bytes(4, "little")
        )
