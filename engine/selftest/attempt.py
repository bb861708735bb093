"""An attempt to get something out past the gate, and what came of it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from engine.errors import SallyportError
from engine.lab.log import Entry
from engine.selftest.hello import client_hello
from engine.selftest.policy import DENIED_SUFFIX

PATIENCE = 2.0
"""Seconds that an attempt waits for the other side's word."""


class SelftestError(SallyportError):
    """The selftest cannot be made, or a part of it does not do what it must for the rest to mean anything."""

    exit_code = 1


class Outcome(str, Enum):
    """blocked: nothing got through. seen: it got through, and the log has it with what tells it apart. open: it got
    through, and the log does not tell. not here: it does not get through without a gate either."""

    BLOCKED = "blocked"
    SEEN = "seen"
    OPEN = "open"
    NOT_HERE = "not here"


class Where(str, Enum):
    """Who makes the attempt."""

    GUARDED = "guarded"
    """A program in the guarded control group, in the guarded namespace."""
    OUTSIDE = "outside"
    """One in the same namespace, outside of the guarded control group."""
    BEHIND = "behind"
    """One in a namespace of its own that is routed through the guarded one, as a container is."""
    OPPOSITE = "opposite"
    """One on the far side, which tries to get in."""
    ASIDE = "aside"
    """One in a namespace of its own with a way out that no gate is on."""


@dataclass(frozen=True)
class Chance:
    """What an attempt is given: a port that is its alone, a token to get out, files, a way to wait for the gate."""

    port: int
    token: str
    work: Path
    listed: Path
    """The program that the policy lists for protected names: a copy of the interpreter that runs the attempts."""
    unwanted: Path
    """The program that the policy denies by path and by digest: another such copy."""
    wait: Callable[[], None] = field(default=lambda: None)
    """Tells that all is prepared, and returns once the gate is there."""

    @property
    def data(self) -> bytes:
        return self.token.encode()

    @property
    def denied_name(self) -> bytes:
        return f"{self.token}.{DENIED_SUFFIX}".encode()

    def name(self, suffix: str) -> bytes:
        return f"{self.token}.{suffix}".encode()

    def denied_hello(self) -> bytes:
        return client_hello(self.denied_name)

    def connect(self, address: str, *, port: int = 0) -> socket.socket:
        return socket.create_connection((address, port or self.port), timeout=PATIENCE)


def hear(connection: socket.socket) -> None:
    """Wait for the server's word. Silence is no error: what got through, the witness says."""
    connection.settimeout(PATIENCE)
    with suppress(TimeoutError):
        connection.recv(64)


@dataclass(frozen=True)
class Attempt:
    """`act` raises OSError where the kernel or the gate refuses it. `because`: why each outcome that is known is what
    it is, in one sentence."""

    name: str
    tries: str
    act: Callable[[Chance], None]
    because: Mapping[Outcome, str]
    where: Where = Where.GUARDED
    whole: bool = True
    """No byte for its port may get through. False: something harmless does first, and the token alone tells."""
    needs: str = ""
    """The privilege that it needs; without any it is made as nobody."""
    files: bool = False
    """It makes files in the run's folder, which is root's: it is made as root, though it needs no privilege."""
    early: bool = False
    """It prepares itself before there is a gate."""
    peer: int = 0
    """A port of its own that the witness's hand-made peer opens towards."""
    deaf: bool = False
    """That peer is at an address that names decide for, and acknowledges no data."""
    called: str = ""
    """The witness calls it from the denied address: its port by `tcp`, or by `icmp`."""
    tells: Callable[[Entry], bool] | None = None
    """Is this the entry that tells what got through from what may?"""


@dataclass(frozen=True)
class Tried:
    """`observed`: what the client, the counters, the log and the capture said."""

    attempt: Attempt
    outcome: Outcome
    observed: str

    @property
    def reason(self) -> str:
        return self.attempt.because.get(self.outcome, self.observed)
