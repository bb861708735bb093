"""Attach and detach by netlink what a start and an end need: XDP and the hold device. TC filters: filters.py."""

from __future__ import annotations

from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from engine.errors import InterfaceError, KernelError
from engine.kernel.links import named
from engine.kernel.netlink import links, netlink
from engine.kernel.pins import Pins

_XDP_NATIVE, _XDP_GENERIC, _XDP_REPLACE = 4, 2, 16
_JUMBO = 65535


def interface_index(name: str) -> int:
    """Return the index of an interface that can carry the gate; InterfaceError otherwise."""
    with netlink(f"look up {name}") as ip:
        return named(name, links(ip)).index


def make_hold_device(pins: Pins) -> tuple[int, int]:
    """Create the veth pair that held packets travel, or find the one that is there. Return both indexes."""
    with netlink("create the hold device") as ip:
        if not ip.link_lookup(ifname=pins.hold_device):
            ip.link("add", ifname=pins.hold_device, kind="veth", peer={"ifname": pins.held_device})
        indexes = []
        for name in (pins.hold_device, pins.held_device):
            # No address of its own, no ARP, no router solicitation: nothing but held frames travels here.
            disable = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
            if disable.exists():
                disable.write_text("1")
            index = ip.link_lookup(ifname=name)[0]
            ip.link("set", index=index, mtu=_JUMBO, arp=False, state="up")
            indexes.append(index)
        return indexes[0], indexes[1]


def _xdp(ip: IPRoute, index: int) -> tuple[int, int]:
    """(flag of the attached mode, program id), zeros when there is none."""
    xdp = ip.get_links(index)[0].get_attr("IFLA_XDP")
    if xdp is None or not xdp.get_attr("IFLA_XDP_PROG_ID"):
        return 0, 0
    generic = xdp.get_attr("IFLA_XDP_ATTACHED") == "xdpgeneric"
    return _XDP_GENERIC if generic else _XDP_NATIVE, int(xdp.get_attr("IFLA_XDP_PROG_ID"))


def standing_xdp(index: int, ours: frozenset[int]) -> int:
    """Return the id of our XDP program that is attached, 0 for none. InterfaceError when somebody else's is."""
    with netlink("look at XDP") as ip:
        standing = _xdp(ip, index)[1]
        if standing and standing not in ours:
            name = ip.get_links(index)[0].get_attr("IFLA_IFNAME")
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
    with netlink("attach the XDP program") as ip:
        info = ip.get_links(index)[0].get_attr("IFLA_LINKINFO")
        veth = info is not None and info.get_attr("IFLA_INFO_KIND") == "veth"
        tries = {"native": (_XDP_NATIVE,), "generic": (_XDP_GENERIC,)}.get(
            mode, (_XDP_GENERIC,) if veth else (_XDP_NATIVE, _XDP_GENERIC)
        )
        for chosen in tries:
            try:
                ip.link("set", index=index, xdp={"attrs": [["IFLA_XDP_FD", program], ["IFLA_XDP_FLAGS", chosen]]})
            except NetlinkError:
                if chosen == tries[-1]:
                    raise
                continue
            return "native" if chosen == _XDP_NATIVE else "generic"
    raise KernelError("No XDP mode could be attached")


def replace_xdp(index: int, program: int, old: int | None) -> str:
    """Put `program` in the place of ours, which `old` is the fd of; return the mode as attach_xdp does."""
    with netlink("replace the XDP program") as ip:
        attached = _xdp(ip, index)[0]
        # EXPECTED_FD without the REPLACE flag is ignored, and the flag without the fd is refused.
        attributes = [["IFLA_XDP_FD", program], ["IFLA_XDP_FLAGS", attached | (_XDP_REPLACE if old is not None else 0)]]
        if old is not None:
            attributes.append(["IFLA_XDP_EXPECTED_FD", old])
        ip.link("set", index=index, xdp={"attrs": attributes})
        return "native" if attached == _XDP_NATIVE else "generic"


def detach_xdp(index: int, ours: frozenset[int]) -> bool:
    with netlink("detach the XDP program") as ip:
        attached, standing = _xdp(ip, index)
        if not standing or standing not in ours:
            return False
        ip.link("set", index=index, xdp={"attrs": [["IFLA_XDP_FD", -1], ["IFLA_XDP_FLAGS", attached]]})
        return True


def remove_hold_device(pins: Pins) -> bool:
    with netlink("remove the hold device") as ip:
        found = ip.link_lookup(ifname=pins.hold_device)
        if not found:
            return False
        ip.link("del", index=found[0])
        return True
