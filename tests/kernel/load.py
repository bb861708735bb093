"""Connections that never stop: allowed ones that must all come through, denied ones of which nothing may arrive."""

from __future__ import annotations

import mmap
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.kernel.host import CLOSED, OPEN, Arrivals, Host, awaited
from tests.kernel.lab import FAR_DEVICE, OUTSIDE
from tests.support.netns import Agent

_SERVE = f"""
import select
l = listening({OUTSIDE!r}, {OPEN})
l.listen(512)
peers = set()
serving = True
while serving:
    for s in select.select([sys.stdin.buffer.raw, l, *peers], [], [])[0]:
        if s is sys.stdin.buffer.raw:
            serving = False
        elif s is l:
            peers.add(l.accept()[0])
        else:
            try:
                data = s.recv(1)
            except OSError:
                data = b""
            if data:
                s.sendall(data)
            else:
                peers.discard(s)
                s.close()
for s in peers:
    s.close()
"""
_COUNTING = """
import mmap, select
counter = mmap.mmap(os.open({path!r}, os.O_RDWR), 8)
n = 0
def going():
    global n
    n += 1
    counter[:] = struct.pack("=Q", n)
    return not select.select([sys.stdin.buffer.raw], [], [], {pause})[0]
"""
# Both kinds: one connection that stays for all the time, and one new after the other.
_ALLOWED = f"""
long = connected({OUTSIDE!r}, {OPEN})
while going():
    s = connected({OUTSIDE!r}, {OPEN})
    for each in (s, long):
        each.sendall(b"x")
        assert exactly(each, 1) == b"x", n
    s.close()
"""
# One port whose deny stands, others that nobody has asked about yet; TCP and UDP. Not waited for: a dropped SYN would
# keep the next one for a second.
_DENIED = f"""
while going():
    for port in [{CLOSED}] + [{CLOSED} + 1 + n % 9000] * (n % 4 == 0):
        s, u = socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.setblocking(False)
        try:
            s.connect(({OUTSIDE!r}, port))
        except OSError:
            pass
        try:
            u.sendto(b"leak", ({OUTSIDE!r}, port))
        except OSError:
            pass
        s.close()
        u.close()
"""


class Loop:
    """An agent that repeats itself until it is told to stop. Its rounds can be counted from outside."""

    def __init__(self, agent: Agent, statements: str, pause: float, path: Path) -> None:
        path.write_bytes(bytes(8))
        self._agent = agent
        with path.open("r+b") as file:
            self._counter = mmap.mmap(file.fileno(), 8)
        agent.start(_COUNTING.format(path=str(path), pause=pause) + statements)

    def rounds(self) -> int:
        return int(struct.unpack("=Q", self._counter[:])[0])

    def more(self, rounds: int) -> None:
        """Wait until it has gone round so many times more; fails when it has ended."""
        before = self.rounds()
        awaited(lambda: self.rounds() >= before + rounds or self._agent.finished(), lambda: f"{self.rounds()} rounds")
        if self._agent.finished():
            self._agent.result()
            raise AssertionError("the loop has ended by itself")

    def stop(self) -> int:
        """End it; raises what it failed with. Return how often it went round."""
        self._agent.start("0")
        self._agent.result()
        self._agent.result()
        return self.rounds()


class Load:
    """The load, and what of it arrived that may not."""

    def __init__(self, host: Host, folder: Path) -> None:
        self._arrivals = Arrivals(host.outside, FAR_DEVICE)
        self._server = host.agent(outside=True)
        self._server.start(_SERVE)
        # Two that are denied: one known to the gate, which refuses it at connect where it can, and one unknown, whose
        # every packet is for the filters alone.
        self._allowed = Loop(host.agent(), _ALLOWED, 0, folder / "allowed")
        self._denied = [
            Loop(host.agent(known=known), _DENIED, 0.001, folder / f"denied-{known}") for known in (True, False)
        ]

    def more(self, rounds: int) -> None:
        """Wait for this many more allowed connections, and as many attempts of each that is denied."""
        for loop in (self._allowed, *self._denied):
            loop.more(rounds)

    def stop(self) -> int:
        """End everything; fails if an allowed connection did. Return how many there were."""
        count = self._allowed.stop()
        for loop in self._denied:
            loop.stop()
        self._server.start("0")
        self._server.result()
        self._server.result()
        return count

    def arrived(self) -> list[bytes]:
        """Return the denied packets that have reached the far side."""
        return self._arrivals.take()

    def close(self) -> None:
        self._arrivals.close()


@contextmanager
def load(host: Host) -> Iterator[Load]:
    with tempfile.TemporaryDirectory() as folder:
        running = Load(host, Path(folder))
        try:
            yield running
        finally:
            running.close()
            host.dismiss()
