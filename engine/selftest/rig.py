"""What the selftest works with: the lab's two sides and its gate, with a witness instead of servers."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from engine.abi.numbers import Counter
from engine.kernel.maps import Map
from engine.lab import topology
from engine.lab.cast import Remote
from engine.lab.gate import Gate
from engine.lab.journal import Plan
from engine.lab.place import Place
from engine.lab.run import BASE, ground, opened
from engine.lab.topology import DEVICE, NEIGHBOUR, SERVER, SERVER_DEVICE, Namespace, Topology
from engine.lab.waiting import until
from engine.selftest.attempt import SelftestError, Where
from engine.selftest.attempts import programs
from engine.selftest.policy import DENIED_SOURCE6, ELSEWHERE, GHOST, NAT64, QUIET, write_policy

FIRST_PORT = 5000
_UNSEEN_PORTS = 20000
"""Above these ports nobody listens, and each is used once: nothing is known about any of them."""
_CLIENT, _WITNESS = "engine.selftest.client", "engine.selftest.witness"
_BEHIND, _ROUTER = "198.51.100.2", "198.51.100.1"
_ASIDE = "203.0.113.2"
_FAST_OPEN = 0x607
"""tcp_fastopen: client and server, both without a cookie, every listener. A cookie would have to be had from the denied
address first."""


def drained(redirected: bytes | None, taken: bytes | None) -> bool:
    """Has the engine taken all that the gate redirected, by the two counters of the hold queue?

    More may be taken than was redirected: Linux 5.10 makes several frames of one datagram buffer with segmentation
    offload. Signed, as the gate compares them.
    """
    if redirected is None or taken is None:
        return False
    return int.from_bytes(taken, "little", signed=True) >= int.from_bytes(redirected, "little", signed=True)


@dataclass(frozen=True)
class Through:
    """What of an attempt the witness has seen: payload bytes for its port, and its token."""

    bytes: int
    token: bool


NOTHING = Through(0, False)


class Rig:
    """`clients` by where they are; `witness` on the other side. `ports` is how many ports are listened to."""

    def __init__(self, plan: Plan, parts: ExitStack, ports: int) -> None:
        self.plan = plan
        self.groups, self.tools = ground(plan)
        self.listed = programs.copy_interpreter(plan.work / "listed")
        self.unwanted = programs.copy_interpreter(plan.work / "unwanted")
        policy = plan.work / "policy"
        write_policy(policy, self.listed, self.unwanted)
        self.net = Topology(self.tools)
        parts.callback(self.net.close)
        self._parts = parts
        self._inside: Remote
        client = self.net.client.path
        self.witness = self._remote(Place(self.groups.servers, self.net.server.path), _WITNESS)
        self.witness.ask("serve", ports=[FIRST_PORT + at for at in range(ports)])
        self.clients = {Where.GUARDED: self._remote(Place(self.groups.plain, client), _CLIENT)}
        self.gate = Gate(
            Place(self.groups.engine, client), self.tools, self.groups.guarded, policy, plan.state, plan.work
        )
        parts.callback(self.gate.close)
        self._unseen_port = _UNSEEN_PORTS

    def _remote(self, place: Place, program: str) -> Remote:
        remote = Remote(place, program)
        self._parts.callback(remote.close)
        return remote

    def widen(self, inward: Sequence[int]) -> None:
        """Make what only attempts need: namespaces behind and aside, programs outside, settings, neighbours, and
        servers on this side at the ports in `inward`."""
        self._inside = self._remote(Place(self.groups.plain, self.net.client.path), _WITNESS)
        self._inside.ask("serve", ports=list(inward))
        behind, aside = Namespace(self.tools), Namespace(self.tools)
        for each in (behind, aside):
            self._parts.callback(each.close)
        net = self.net
        self._set(net.client, "net/ipv4/ip_forward", "1")
        self._set(net.client, "net/ipv4/ping_group_range", "0 2147483647")
        for side in (net.client, net.server):
            self._set(side, "net/ipv4/tcp_fastopen", str(_FAST_OPEN))
        net.client.configure(
            f"link add way0 type veth peer name way1 netns {behind.keeper.pid}\n"
            f"address add {_ROUTER}/24 dev way0\nlink set way0 up\n"
            # Nobody's addresses: without an entry their packets would wait for an answer to ARP.
            f"neighbor replace {GHOST} lladdr {self.mac(net.server, SERVER_DEVICE)} dev {DEVICE} nud permanent\n"
            f"neighbor replace {QUIET} lladdr {self.mac(net.server, SERVER_DEVICE)} dev {DEVICE} nud permanent\n"
            f"route add {NAT64}/128 dev {DEVICE}\n"
            f"neighbor replace {SERVER} lladdr {self.mac(net.server, SERVER_DEVICE)} dev {DEVICE} nud permanent"
        )
        behind.configure(
            f"link set lo up\naddress add {_BEHIND}/24 dev way1\nlink set way1 up\nroute add default via {_ROUTER}"
        )
        net.server.configure(
            f"route add 198.51.100.0/24 via {topology.CLIENT}\n"
            f"address add 2001:db8:5a11::98/64 dev {SERVER_DEVICE} nodad\n"
            f"address add {NAT64}/128 dev {SERVER_DEVICE} nodad\n"
            f"address add {DENIED_SOURCE6}/64 dev {SERVER_DEVICE} nodad\n"
            f"link add other0 type veth peer name other1 netns {aside.keeper.pid}\n"
            f"address add {ELSEWHERE}/24 dev other0\nlink set other0 up"
        )
        aside.configure(f"link set lo up\naddress add {_ASIDE}/24 dev other1\nlink set other1 up")
        for where, place in (
            (Where.OPPOSITE, Place(self.groups.servers, net.server.path)),
            (Where.OUTSIDE, Place(self.groups.tools, net.client.path)),
            (Where.BEHIND, Place(self.groups.plain, behind.path)),
            (Where.ASIDE, Place(self.groups.plain, aside.path)),
        ):
            self.clients[where] = self._remote(place, _CLIENT)

    def _set(self, side: Namespace, what: str, value: str) -> None:
        done = Place(self.groups.tools, side.path).run(["sh", "-c", 'echo "$1" >"/proc/sys/$0"', what, value])
        if done.code != 0:
            raise SelftestError(f"The setting {what} cannot be changed in a namespace: {done.last_words}")

    def mac(self, side: Namespace, device: str) -> str:
        """The link address of a device."""
        done = Place(self.groups.tools, side.path).run(["ip", "-json", "link", "show", "dev", device])
        return str(json.loads(done.out)[0]["address"])

    # ---- what came of it

    def through(self, port: int, token: str) -> Through:
        seen = self.witness.ask("seen", port=port, token=token)
        if seen["missed"]:
            raise SelftestError(f"The capture missed {seen['missed']} frames, so it proves nothing: run it again")
        return Through(seen["bytes"], seen["token"])

    def heard(self, port: int, token: str) -> Through:
        """What the servers on this side have read."""
        heard = self._inside.ask("heard", port=port, token=token)
        return Through(heard["bytes"], heard["token"])

    def forget(self) -> None:
        """Begin anew: what was seen and heard until now is of no attempt."""
        self.witness.ask("forget")
        self._inside.ask("forget")

    def settle(self) -> None:
        """Return once the engine has judged all that was held until now.

        A datagram to where none has been before goes through the same queue, behind all that is in it.
        """
        token = secrets.token_hex(8)
        self._unseen_port += 1
        self.clients[Where.GUARDED].ask("send", address=NEIGHBOUR, port=self._unseen_port, text=token)
        if not until(lambda: self.through(self._unseen_port, token).token):
            raise SelftestError(f"The engine answers no more; its last words:\n{self.gate.last_words()}")
        queue = Map(self.gate.pins.maps / "hold_queue")
        try:
            until(lambda: drained(queue.get(bytes(4)), queue.get((1).to_bytes(4, "little"))))
        finally:
            queue.close()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The engine and its evaluator stand still."""
        freeze, events = (self.groups.engine / name for name in ("cgroup.freeze", "cgroup.events"))
        try:
            freeze.write_text("1")
            if not until(lambda: "frozen 1" in events.read_text()):
                raise SelftestError("The engine cannot be made to stand still: the kernel has no cgroup.freeze")
            yield
        finally:
            freeze.write_text("0")


STOPPED = tuple(each for each in Counter if each.name.startswith(("DROPPED_", "REFUSED_")))
HELD = tuple(each for each in Counter if each.name.startswith("HELD_"))


@contextmanager
def open_rig(ports: int, begun: Callable[[str], None]) -> Iterator[Rig]:
    """Build a rig; take everything away at the end, whatever the end is. `begun` hears the run's name."""
    with opened(lambda plan, parts: Rig(plan, parts, ports), BASE, None, begun) as rig:
        yield rig
