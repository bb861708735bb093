"""Which interfaces are guarded, and what becomes of them. Without netlink's library: the engine imports this.

`--interface` takes names and patterns. What matches is guarded as soon as netlink tells that something has changed; an
interface that comes back under another index is a new one to the kernel and gets its filters again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fnmatch
import json
import re
import socket
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from engine.abi.numbers import InterfaceKind
from engine.errors import InterfaceError, KernelError

ETHERNET, LOOPBACK = 1, 772
"""ARPHRD_* of linux/if_arp.h."""
_NETLINK_ROUTE = 0
_RTMGRP_LINK, _RTMGRP_TC = 1, 8
_RECEIVE = 1 << 16
_ANSWER_MOST = 1 << 24
_PATIENCE = 30.0
"""Seconds for one look: a thousand interfaces at once, on a busy machine."""
_HOLD_DEVICES = re.compile(r"(hold|held)-[0-9a-f]{8}")


@dataclass(frozen=True)
class Link:
    """One interface. `hardware`: ARPHRD_*."""

    index: int
    name: str
    hardware: int


# ---- which


def is_pattern(word: str) -> bool:
    """Is this a pattern (`veth*`, `eth[01]`) and no name?"""
    return any(sign in word for sign in "*?[")


def named(name: str, links: Iterable[Link]) -> Link:
    """Return the interface of this name. InterfaceError when there is none, or when it cannot carry the gate."""
    links = list(links)
    for link in links:
        if link.name == name:
            if why := unfit(link):
                raise InterfaceError(why, hint="Guard the Ethernet interface that its packets leave by.")
            return link
    present = ", ".join(sorted(link.name for link in links))
    raise InterfaceError(
        f"There is no interface {name!r}",
        hint=f"Interfaces here: {present}. One that is still to come is guarded by a pattern, such as '{name}*'.",
    )


def unfit(link: Link) -> str:
    """Say why an interface cannot carry the gate; empty when it can."""
    if link.hardware == LOOPBACK:
        return f"Interface {link.name} is the loopback: what it carries never leaves this host"
    if link.hardware != ETHERNET:
        kind = f"hardware type {link.hardware}"
        return f"Interface {link.name} has no Ethernet header ({kind}), so its packets cannot be held"
    return ""


def matching(patterns: Iterable[str], links: Iterable[Link]) -> list[Link]:
    """Return the interfaces that a pattern speaks of. Never the loopback, nor any engine's own hold device: a held
    packet would be held again."""
    return [
        link for link in links
        if link.hardware != LOOPBACK and not _HOLD_DEVICES.fullmatch(link.name)
        and any(fnmatch.fnmatchcase(link.name, pattern) for pattern in patterns)
    ]  # fmt: skip


def to_guard(words: Sequence[str], links: Sequence[Link]) -> list[Link]:
    """Return the interfaces to guard at a start: every name (InterfaceError if one is missing or unfit), and what fits
    the patterns. That no interface matches a pattern yet is no error."""
    chosen = [named(word, links) for word in words if not is_pattern(word)]
    patterns = [word for word in words if is_pattern(word)]
    return chosen + [link for link in matching(patterns, links) if link not in chosen and not unfit(link)]


def is_inside(name: str, words: Iterable[str]) -> bool:
    """Is this one of the inside interfaces, by which others reach the network through this host?"""
    return any(fnmatch.fnmatchcase(name, word) for word in words)


def kind_of(name: str, inside: Iterable[str]) -> InterfaceKind:
    """Return what the gate is told of an interface."""
    return InterfaceKind.ETHERNET | (InterfaceKind.INSIDE if is_inside(name, inside) else InterfaceKind(0))


# ---- when


class LinkWatch:
    """Hears that something about interfaces, qdiscs or filters has changed, in the network namespace that it was made
    in. What has changed is looked at anew each time: of what is told here, some may be lost."""

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
            self._socket.bind((0, _RTMGRP_LINK | _RTMGRP_TC))
        except OSError as error:
            raise KernelError(f"No netlink socket can be opened: {error.strerror}") from error
        self._socket.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> None:
        """Throw away what was told; never waits."""
        while True:
            try:
                self._socket.recv(_RECEIVE)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # more was told than there was room for: it is still a change
                    raise

    def close(self) -> None:
        self._socket.close()


class What(str, Enum):
    GUARDED = "guarded"
    RESTORED = "restored"
    """Somebody had taken a filter off; it is back."""
    RENAMED = "renamed"
    GONE = "gone"
    REFUSED = "refused"
    """It cannot or could not be guarded: `why` says so."""


@dataclass(frozen=True)
class News:
    """What became of one interface. `seconds`: from being told of it to the last filter in place."""

    what: What
    index: int
    name: str
    why: str = ""
    seconds: float = 0.0


@dataclass
class Known:
    """What the engine knows between two looks.

    `words`, `inside`: names and patterns, as configured; `guarded`: index -> name; `refused`: index -> name and why;
    `trying`: one of them may do better next time; `ingress`: the program that judges what comes in has come to stand on
    the guarded ones, as the loader leaves it.
    """

    words: list[str]
    inside: list[str]
    guarded: dict[int, str]
    refused: dict[int, tuple[str, str]] = field(default_factory=dict)
    trying: bool = False
    ingress: bool = True

    @classmethod
    def read(cls, document: dict[str, Any]) -> Known:
        """Read what JSON made of it: keys that are text, tuples that are lists."""
        return cls(
            document["words"], document["inside"],
            {int(index): name for index, name in document["guarded"].items()},
            {int(index): (name, why) for index, (name, why) in document["refused"].items()},
            document["trying"], document["ingress"],
        )  # fmt: skip


class KeeperProcess:
    """The child that looks after the interfaces (engine/kernel/keeper.py), started whenever there is none."""

    def __init__(self, state_dir: Path, known: Known, patience: float = _PATIENCE) -> None:
        self._state_dir = str(state_dir)
        self._patience = patience
        self.known = known
        self.lacking: dict[str, str] = {}
        """Guarded interfaces where what comes in is to be judged and cannot be: name -> why."""
        self._child: asyncio.subprocess.Process | None = None
        self._ended = False

    async def look(self, *, ingress: bool = True) -> list[News]:
        """Have the filters brought in line with what interfaces there are; return what became of which.

        `ingress`: what comes in is judged, or about to be. KernelError when that could not be looked at: what is known
        stays as it was.
        """
        words = {"state_dir": self._state_dir, "known": asdict(self.known), "ingress": ingress}
        order = json.dumps(words).encode() + b"\n"
        # The one that there is may have gone, for want of work.
        line = await self._ask(order) or await self._ask(order)
        if not line:
            raise KernelError("the child that looks after interfaces ended without an answer")
        answer = json.loads(line)
        if "error" in answer:
            raise KernelError(answer["error"])
        self.known = Known.read(answer["known"])
        self.lacking = answer["lacking"]
        return [News(**{**each, "what": What(each["what"])}) for each in answer["news"]]

    async def _ask(self, order: bytes) -> bytes:
        """Return the answer, empty when the child ended without one. KernelError when it hangs."""
        if self._ended:
            raise KernelError("interfaces are no longer looked after: the engine is being stopped")
        if self._child is None:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "engine.kernel.keeper", stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE, limit=_ANSWER_MOST,
            )  # fmt: skip
        into, out = self._child.stdin, self._child.stdout
        assert into is not None  # noqa: S101 - pipes were asked for
        assert out is not None  # noqa: S101
        line = b""
        try:
            into.write(order)
            line = await asyncio.wait_for(out.readline(), self._patience)
        except ConnectionError:
            pass
        except asyncio.TimeoutError as error:
            await self._let_go(kill=True)
            raise KernelError("the child that looks after interfaces does not answer") from error
        if not line:
            await self._let_go()
        return line

    async def end(self) -> None:
        """End the child for good: no look starts another one."""
        self._ended = True
        await self._let_go(kill=True)

    async def _let_go(self, *, kill: bool = False) -> None:
        child, self._child = self._child, None
        if child is None or child.stdin is None:
            return
        if kill:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        child.stdin.close()
        with contextlib.suppress(ConnectionError):
            await child.stdin.wait_closed()
        await child.wait()
