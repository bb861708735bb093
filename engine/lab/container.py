"""What is behind the client and beside the wire: a container that reaches the network through the client's side, and an
interface that comes later.

    container                      client                                    server
    198.51.100.2      <-inside0->  forwards  gate0               <-veth->   gate1
    2001:db8:5a12::2                         late0  203.0.113.2  <-veth->   late1  203.0.113.10
"""

from __future__ import annotations

from engine.lab import topology
from engine.lab.errors import LabError
from engine.lab.place import Place
from engine.lab.topology import Namespace, Topology

INSIDE = "inside0"
CONTAINER, CONTAINER6 = "198.51.100.2", "2001:db8:5a12::2"
LATE, LATE_SERVER_DEVICE = "late0", "late1"
LATE_PATTERN = "late*"
LATE_SERVER = "203.0.113.10"
_ROUTER, _ROUTER6, _LATE_CLIENT = "198.51.100.1", "2001:db8:5a12::1", "203.0.113.2"
_FORWARD = "for version in ipv4 ipv6; do echo 1 >/proc/sys/net/$version/conf/all/forwarding; done"


class Container:
    """A namespace with a wire to the client's side, which forwards what comes from it."""

    def __init__(self, net: Topology, tools: Place) -> None:
        self.namespace = Namespace(tools)
        forwarding = Place(tools.cgroup, net.client.path).run(["sh", "-ec", _FORWARD])
        if forwarding.code != 0:
            raise LabError(f"The lab's client side cannot be made to forward: {forwarding.last_words}")
        net.client.configure(
            f"link add {INSIDE} type veth peer name eth0 netns {self.namespace.keeper.pid}\n"
            f"link set {INSIDE} addrgenmode none\naddress add {_ROUTER}/24 dev {INSIDE}\n"
            f"address add {_ROUTER6}/64 dev {INSIDE} nodad\nlink set {INSIDE} up\n"
            # For what it forwards, the kernel asks for neighbours from a link-local address or not at all.
            f"address add fe80::1/64 dev {INSIDE} nodad\naddress add fe80::2/64 dev {topology.DEVICE} nodad"
        )
        self.namespace.configure(
            "link set lo up\nlink set eth0 addrgenmode none\n"
            f"address add {CONTAINER}/24 dev eth0\naddress add {CONTAINER6}/64 dev eth0 nodad\nlink set eth0 up\n"
            f"route add default via {_ROUTER}\nroute add default via {_ROUTER6}"
        )
        net.server.configure(
            f"route add {CONTAINER}/32 via {topology.CLIENT}\nroute add {CONTAINER6}/128 via {topology.CLIENT6}"
        )

    def close(self) -> None:
        self.namespace.close()


def add_late_wire(net: Topology) -> None:
    """Give both sides another interface."""
    net.client.configure(
        f"link add {LATE} type veth peer name {LATE_SERVER_DEVICE} netns {net.server.keeper.pid}\n"
        f"link set {LATE} addrgenmode none\naddress add {_LATE_CLIENT}/24 dev {LATE}\nlink set {LATE} up"
    )
    net.server.configure(
        f"link set {LATE_SERVER_DEVICE} addrgenmode none\naddress add {LATE_SERVER}/24 dev {LATE_SERVER_DEVICE}\n"
        f"link set {LATE_SERVER_DEVICE} up"
    )
