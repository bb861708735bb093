"""A TCP endpoint without a stack: what it sends is made by hand, so that it can say what no stack would."""

from __future__ import annotations

from collections.abc import Callable

from engine.selftest import frames
from engine.selftest.frames import ACK, PSH, SYN, Seen
from tests.kernel.host import Host
from tests.kernel.lab import DEVICE, FAR_DEVICE, INSIDE
from tests.support.netns import Namespace, Wire

GHOST = "10.77.0.99"
"""An address on the wire that no stack has: nobody answers it with a reset."""
_IPV4 = 0x0800


def hardware(space: Namespace, device: str) -> bytes:
    """Return a device's Ethernet address."""
    return bytes.fromhex(space.ip("-br", "link", "show", "dev", device).split()[2].replace(":", ""))


def ends(host: Host) -> tuple[bytes, bytes]:
    """Return the Ethernet addresses of a host's guarded wire, the near one first."""
    return hardware(host.inside, DEVICE), hardware(host.outside, FAR_DEVICE)


def haunt(near: Namespace, device: str, far: Namespace, far_device: str, ghost: str = GHOST) -> None:
    """Let the near side of a cable find the ghost on its far side."""
    address = hardware(far, far_device).hex(":")
    near.ip("neigh", "replace", ghost, "lladdr", address, "dev", device, "nud", "permanent")


class Hand:
    """One end of one connection, on the far side of the cable. `seq` and `ack` are what the next segment carries."""

    def __init__(
        self, wire: Wire, cable: tuple[bytes, bytes], port: int, peer_port: int = 0, *, address: str = GHOST,
        peer: str = INSIDE, seq: int = 1000,
    ) -> None:  # fmt: skip
        self._wire = wire
        self._cable = cable
        self.address, self.peer, self.port, self.peer_port = address, peer, port, peer_port
        self.seq, self.ack = seq, 0

    def say(
        self, flags: int, payload: bytes = b"", *, seq: int | None = None, is_broken: bool = False, urgent: int = 0
    ) -> None:
        """Send a segment. `is_broken`: with a checksum that no stack takes; `urgent`: with this urgent pointer."""
        at = self.seq if seq is None else seq
        acknowledged = self.ack if flags & ACK else 0
        segment = frames.tcp(
            self.address, self.peer, self.port, self.peer_port, at, acknowledged, flags, payload, urgent=urgent
        )
        if is_broken:
            segment = segment[:16] + bytes([segment[16] ^ 0x55]) + segment[17:]
        packet = frames.ipv4(self.address, self.peer, frames.TCP, segment)
        self._wire.send(frames.ethernet(*self._cable, _IPV4, packet))

    def hear(self, wanted: Callable[[Seen], bool]) -> Seen:
        """Wait for a segment to this end."""
        heard: list[Seen] = []

        def is_it(frame: bytes) -> bool:
            seen = frames.dissect(frame)
            if seen is None or seen.protocol != frames.TCP or seen.dport != self.port or not wanted(seen):
                return False
            heard.append(seen)
            return True

        self._wire.until(is_it)
        return heard[0]

    def open(self) -> None:
        """Open the connection as a client does."""
        self.say(SYN)
        answer = self.hear(lambda seen: seen.flags & (SYN | ACK) == SYN | ACK)
        self.seq, self.ack = self.seq + 1, answer.seq + 1
        self.say(ACK)

    def send(self, payload: bytes) -> None:
        self.say(ACK | PSH, payload)
        self.seq += len(payload)
