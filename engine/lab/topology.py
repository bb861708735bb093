"""Two network namespaces and the wire between them.

    client                                        server
    gate0  192.0.2.2, 2001:db8:5a11::2   <-veth->  gate1  192.0.2.10 ... (see the addresses below)

The namespaces have no names and no mounts: each lives as long as its keeper, a `cat` that waits for its input to end.
That happens when the lab ends, however it ends.
"""

from __future__ import annotations

from pathlib import Path

from engine.lab.errors import LabError
from engine.lab.place import Place

DEVICE = "gate0"
SERVER_DEVICE = "gate1"
CLIENT, CLIENT6 = "192.0.2.2", "2001:db8:5a11::2"
SERVER, SERVER6 = "192.0.2.10", "2001:db8:5a11::10"
DENIED, DENIED6 = "192.0.2.66", "2001:db8:5a11::66"
"""Addresses of the server that the policy denies."""
NEIGHBOUR, DENIED_SOURCE, SCANNER, FLOODER = "192.0.2.98", "192.0.2.99", "192.0.2.97", "192.0.2.96"
"""Addresses that the server calls from: one that may, one that the policy denies, one that tries many ports, one that
calls without end."""
RESOLVER = "192.0.2.53"
ANSWERED, UNANSWERED = "192.0.2.80", "192.0.2.81"
"""Addresses of the server that DNS answers for a name, and does not."""
SHOP, SHOP6 = "192.0.2.82", "2001:db8:5a11::82"
"""Addresses of the server that are for one container."""
METADATA = "169.254.169.254"

# No link-local addresses and nodad: neither solicitations in the captures nor a wait for addresses to be usable.
_CLIENT = f"""
link set lo up
link add {DEVICE} type veth peer name {SERVER_DEVICE} netns {{server}}
link set {DEVICE} addrgenmode none
address add {CLIENT}/24 dev {DEVICE}
address add {CLIENT6}/64 dev {DEVICE} nodad
link set {DEVICE} up
route add {METADATA}/32 dev {DEVICE}
"""
_ADDRESSES = (
    SERVER, DENIED, NEIGHBOUR, DENIED_SOURCE, SCANNER, FLOODER, RESOLVER, ANSWERED, UNANSWERED, SHOP,
)  # fmt: skip
_SERVER = "\n".join(
    (
        "link set lo up",
        f"link set {SERVER_DEVICE} addrgenmode none",
        *(f"address add {each}/24 dev {SERVER_DEVICE}" for each in _ADDRESSES),
        *(f"address add {each}/64 dev {SERVER_DEVICE} nodad" for each in (SERVER6, DENIED6, SHOP6)),
        f"address add {METADATA}/32 dev {SERVER_DEVICE}",
        f"link set {SERVER_DEVICE} up",
    )
)


class Namespace:
    """A network namespace, for as long as its keeper's input is open."""

    def __init__(self, tools: Place) -> None:
        self._tools = tools
        self.keeper = tools.start(["unshare", "--net", "--", "cat"])
        assert self.keeper.stdin is not None  # noqa: S101 - pipes were asked for
        assert self.keeper.stdout is not None  # noqa: S101
        # unshare becomes cat only once the namespace is made: what comes back came from inside.
        self.keeper.stdin.write(b"\n")
        self.keeper.stdin.flush()
        if self.keeper.stdout.read(1) != b"\n":
            raise LabError("A network namespace cannot be made", hint="The lab needs root and CONFIG_NET_NS.")

    @property
    def path(self) -> Path:
        return Path(f"/proc/{self.keeper.pid}/ns/net")

    def configure(self, batch: str) -> None:
        done = Place(self._tools.cgroup, self.path).run(["ip", "-batch", "-"], batch.strip() + "\n")
        if done.code != 0:
            raise LabError(
                f"The lab's network cannot be set up: {done.last_words}",
                hint="The lab needs the veth driver and IPv6 (modprobe veth; sysctl net.ipv6.conf.all.disable_ipv6=0).",
            )

    def close(self) -> None:
        self.keeper.kill()
        self.keeper.communicate()


class Topology:
    """Both sides, connected."""

    def __init__(self, tools: Place) -> None:
        self.client = Namespace(tools)
        self.server = Namespace(tools)
        self.client.configure(_CLIENT.format(server=self.server.keeper.pid))
        self.server.configure(_SERVER)

    def close(self) -> None:
        self.client.close()
        self.server.close()
