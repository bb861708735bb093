"""Attach and detach by netlink what a start and an end need: XDP and the hold device. TC filters: filters.py."""

from __future__ import annotations

from pathlib import Path

from engine.errors import InterfaceError, KernelError
from engine.kernel.links import named
from engine.kernel.pins import Pins
from engine.kernel.rtnetlink import NESTED, RouteSocket, attribute, attributes, link_header

_XDP_NATIVE, _XDP_GENERIC, _XDP_REPLACE = 4, 2, 16
"""XDP_FLAGS_* of linux/if_link.h."""
_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_XDP = 3, 4, 18, 43
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_XDP_FD, _XDP_ATTACHED, _XDP_FLAGS, _XDP_PROGRAM, _XDP_EXPECTED_FD = 1, 2, 3, 4, 8
_ATTACHED_GENERIC = 2
_UP, _NO_ARP = 0x1, 0x80
_JUMBO = 65535


def interface_index(name: str) -> int:
    """Return the index of an interface that can carry the gate; InterfaceError otherwise."""
    with RouteSocket() as route:
        return named(name, route.links()).index


def make_hold_device(pins: Pins) -> tuple[int, int]:
    """Create the veth pair that held packets travel, or find the one that is there. Return both indexes."""
    doing = "create the hold device"
    with RouteSocket() as route:
        if pins.hold_device not in (link.name for link in route.links()):
            peer = link_header() + _named(pins.held_device)
            kind = attribute(_INFO_KIND, b"veth") + attribute(_INFO_DATA | NESTED, attribute(_VETH_PEER | NESTED, peer))
            route.add_link(doing, _named(pins.hold_device) + attribute(_IFLA_LINKINFO | NESTED, kind))
        standing = {link.name: link.index for link in route.links()}
        for name in (pins.hold_device, pins.held_device):
            # No address of its own, no ARP, no router solicitation: nothing but held frames travels here.
            disable = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
            if disable.exists():
                disable.write_text("1")
            route.set_link(doing, standing[name], attribute(_IFLA_MTU, _u32(_JUMBO)), _UP | _NO_ARP)
        return standing[pins.hold_device], standing[pins.held_device]


def _named(name: str) -> bytes:
    return attribute(_IFLA_IFNAME, name.encode() + b"\0")


def _u32(value: int) -> bytes:
    return (value & 0xFFFFFFFF).to_bytes(4, "little")


def _xdp(route: RouteSocket, index: int) -> tuple[int, int]:
    """(flag of the attached mode, program id), zeros when there is none."""
    said = attributes(route.facts(index).get(_IFLA_XDP, b""))
    program = int.from_bytes(said.get(_XDP_PROGRAM, b""), "little")
    if not program:
        return 0, 0
    generic = int.from_bytes(said[_XDP_ATTACHED], "little") == _ATTACHED_GENERIC
    return _XDP_GENERIC if generic else _XDP_NATIVE, program


def _set_xdp(route: RouteSocket, doing: str, index: int, program: int, flags: int, expected: int | None = None) -> None:
    """Attach `program`, an fd; -1 for none. With `expected`, an fd, only in the place of that one."""
    said = attribute(_XDP_FD, _u32(program)) + attribute(_XDP_FLAGS, _u32(flags))
    if expected is not None:
        said += attribute(_XDP_EXPECTED_FD, _u32(expected))
    route.set_link(doing, index, attribute(_IFLA_XDP | NESTED, said))


def standing_xdp(index: int, ours: frozenset[int]) -> int:
    """Return the id of our XDP program that is attached, 0 for none. InterfaceError when somebody else's is."""
    with RouteSocket() as route:
        standing = _xdp(route, index)[1]
        if standing and standing not in ours:
            name = route.facts(index)[_IFLA_IFNAME].rstrip(b"\0").decode(errors="replace")
            raise InterfaceError(
                f"Interface {name} already has an XDP program that is not ours",
                hint=f'Remove it (ip link set {name} xdp off), or set mode = "off" in [xdp] of the configuration.',
            )
        return standing


def attach_xdp(index: int, program: int, mode: str) -> str:
    """Attach where nothing is attached; return "native" or "generic".

    `mode` auto: native where the driver can, but generic on veth, where a native program switches segmentation
    offload off at the peer and hides the sending socket.
    """
    with RouteSocket() as route:
        info = attributes(route.facts(index).get(_IFLA_LINKINFO, b""))
        veth = info.get(_INFO_KIND, b"").rstrip(b"\0") == b"veth"
        tries = {"native": (_XDP_NATIVE,), "generic": (_XDP_GENERIC,)}.get(
            mode, (_XDP_GENERIC,) if veth else (_XDP_NATIVE, _XDP_GENERIC)
        )
        for chosen in tries:
            try:
                _set_xdp(route, "attach the XDP program", index, program, chosen)
            except KernelError:
                if chosen == tries[-1]:
                    raise
                continue
            return "native" if chosen == _XDP_NATIVE else "generic"
    raise KernelError("No XDP mode could be attached")


def replace_xdp(index: int, program: int, old: int | None) -> str:
    """Put `program` in the place of ours, which `old` is the fd of; return the mode as attach_xdp does."""
    with RouteSocket() as route:
        attached = _xdp(route, index)[0]
        # EXPECTED_FD without the REPLACE flag is ignored, and the flag without the fd is refused.
        flags = attached | (_XDP_REPLACE if old is not None else 0)
        _set_xdp(route, "replace the XDP program", index, program, flags, old)
        return "native" if attached == _XDP_NATIVE else "generic"


def detach_xdp(index: int, ours: frozenset[int]) -> bool:
    with RouteSocket() as route:
        attached, standing = _xdp(route, index)
        if not standing or standing not in ours:
            return False
        _set_xdp(route, "detach the XDP program", index, -1, attached)
        return True


def remove_hold_device(pins: Pins) -> bool:
    with RouteSocket() as route:
        for link in route.links():
            if link.name == pins.hold_device:
                route.remove_link("remove the hold device", link.index)
                return True
        return False
