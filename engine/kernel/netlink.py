"""Netlink by pyroute2, with its errors as ours.

Importing it costs 19 MiB and 130 ms: the loader, what detaches and the child that looks after interfaces pay that, the
engine itself does not.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from engine.errors import InterfaceError, KernelError, PrivilegeError
from engine.kernel.links import Link

_NEEDS = "Guarding interfaces needs root with its capabilities, CAP_NET_ADMIN among them."


@contextmanager
def netlink(doing: str) -> Iterator[IPRoute]:
    """Open a netlink socket in this thread's network namespace; errors as `refusing` has them."""
    with refusing(doing), IPRoute() as ip:
        yield ip


@contextmanager
def refusing(doing: str) -> Iterator[None]:
    """Turn what the kernel refuses into an error of ours: InterfaceError where the interface is gone."""
    try:
        yield
    except NetlinkError as error:
        said = f"The kernel refused to {doing}: {os.strerror(error.code)}"
        if error.code in {errno.EPERM, errno.EACCES}:
            raise PrivilegeError(said, hint=_NEEDS) from error
        if error.code == errno.ENODEV:
            raise InterfaceError(said, hint="It is gone. It is guarded again as soon as it is back.") from error
        raise KernelError(said) from error


def links(ip: IPRoute) -> list[Link]:
    """Return the interfaces that there are."""
    with refusing("list the interfaces"):
        return [Link(each["index"], each.get_attr("IFLA_IFNAME"), each["ifi_type"]) for each in ip.get_links()]
