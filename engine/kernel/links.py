"""Which interfaces are guarded, and that they stay so while interfaces come and go.

`--interface` takes names and patterns. What matches is guarded as soon as netlink tells of it; an interface that comes
back under another index is a new one to the kernel and gets its filters again.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import re
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from engine.abi.numbers import InterfaceKind, Mode
from engine.abi.records import Config
from engine.errors import InterfaceError, SallyportError
from engine.kernel import filters, libbpf
from engine.kernel.maps import Map
from engine.kernel.pins import Pins
from engine.kernel.rtnetlink import (
    ETHERNET,
    GROUP_LINK,
    GROUP_TC,
    LOOPBACK,
    Link,
    RouteSocket,
    Type,
    interface_of,
    link_of,
    messages,
    open_socket,
)

_TAKEN_DOWN = "the gate was taken down beside this engine, which guards nothing any more"
_HOLD_DEVICES = re.compile(r"(hold|held)-[0-9a-f]{8}")
_RECEIVE = 1 << 16
_SO_RCVBUFFORCE = 33
_QUEUE = 1 << 20
"""A thousand containers that start at once."""


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


@dataclass(frozen=True)
class Changes:
    """What netlink told. `gone`: indexes of interfaces that were removed; `stripped`: of those that lost a qdisc or a
    filter; `lost`: it told more than there was room for, so everything is to be looked at."""

    gone: frozenset[int] = frozenset()
    stripped: frozenset[int] = frozenset()
    lost: bool = False

    def __or__(self, other: Changes) -> Changes:
        return Changes(self.gone | other.gone, self.stripped | other.stripped, self.lost or other.lost)


class LinkWatch:
    """Hears of every interface that comes, goes or loses a filter, in the network namespace that it was made in."""

    def __init__(self) -> None:
        self._socket = open_socket(GROUP_LINK | GROUP_TC)
        self._socket.setblocking(False)
        with contextlib.suppress(PermissionError):  # without CAP_NET_ADMIN the default has to do
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _QUEUE)

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> Changes:
        """Return what was told since the last time; never waits."""
        gone: set[int] = set()
        stripped: set[int] = set()
        lost = False
        while True:
            try:
                data = self._socket.recv(_RECEIVE)
            except BlockingIOError:
                return Changes(frozenset(gone), frozenset(stripped), lost)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
                continue
            for message in messages(data):
                if message.type == Type.DEL_LINK and (link := link_of(message.body)) is not None:
                    gone.add(link.index)
                elif message.type in (Type.DEL_QDISC, Type.DEL_FILTER):
                    stripped.add(interface_of(message.body))

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


class Keeper:
    """Keeps the filters on every interface that is to be guarded. Blocks on netlink: to be called from a thread, one
    call at a time.

    `standing`: index -> name of what the loader has guarded already. An interface that is guarded stays guarded under
    whatever name it is given later: renaming it must not be a way out.
    """

    def __init__(
        self, pins: Pins, words: Sequence[str], standing: Mapping[int, str], inside: Sequence[str] = ()
    ) -> None:
        self._pins = pins
        self._inside = tuple(inside)
        words = [*words, *inside]
        self._names = frozenset(word for word in words if not is_pattern(word))
        self._patterns = tuple(word for word in words if is_pattern(word))
        self._config = Map(pins.maps / "config")
        self._guarded = dict(standing)
        self._refused: dict[int, News] = {}
        self.trying = False
        """Something could not be guarded that may be next time."""

    def look(self, changes: Changes) -> list[News]:
        """Bring the filters and the `interfaces` map in line with what interfaces there are; say what was done."""
        began = time.monotonic()
        with RouteSocket() as route:
            links = {link.index: link for link in route.links()}
        news = self._forget(changes.gone, links)
        self.trying = False
        suspects = frozenset(self._guarded) if changes.lost else changes.stripped & self._guarded.keys()
        for index in sorted(suspects):
            news += self._restore(links[index])
        for link in self._wanted(links.values()):
            if link.index not in self._guarded:
                news += self._guard(link, began)
        return news

    def _wanted(self, links: Iterable[Link]) -> list[Link]:
        links = list(links)
        matched = matching(self._patterns, links)
        return matched + [link for link in links if link.name in self._names and link not in matched]

    def _forget(self, gone: frozenset[int], links: Mapping[int, Link]) -> list[News]:
        news = []
        for index, name in list(self._guarded.items()):
            if index in gone or index not in links:
                del self._guarded[index]
                self._tell_gate(index, None)
                news.append(News(What.GONE, index, name))
            elif links[index].name != name:
                self._guarded[index] = links[index].name
                news.append(News(What.RENAMED, index, links[index].name, f"it was {name}"))
        for index, refused in list(self._refused.items()):
            if index in gone or index not in links:
                del self._refused[index]
                news.append(News(What.GONE, index, refused.name))
        return news

    def _guard(self, link: Link, began: float) -> list[News]:
        why = unfit(link)
        try:
            if not why:
                self._attach(link)
                self._guarded[link.index] = link.name
                self._refused.pop(link.index, None)
                return [News(What.GUARDED, link.index, link.name, seconds=time.monotonic() - began)]
        except SallyportError as error:
            why = error.message
            self.trying = True
        return self._refuse(link, why)

    def _restore(self, link: Link) -> list[News]:
        try:
            absent = filters.missing(link.index, self._ours(), inside=is_inside(link.name, self._inside))
            if not absent:
                return []
            self._attach(link)
        except SallyportError as error:
            # Next time it is guarded anew, which restores it too.
            del self._guarded[link.index]
            self.trying = True
            return self._refuse(link, error.message)
        return [News(What.RESTORED, link.index, link.name, f"without {', '.join(absent)} for a moment")]

    def _refuse(self, link: Link, why: str) -> list[News]:
        refused = News(What.REFUSED, link.index, link.name, why)
        if self._refused.get(link.index) == refused or not _exists(link):
            return []
        self._refused[link.index] = refused
        return [refused]

    def _attach(self, link: Link) -> None:
        programs = self._programs()
        ours = frozenset(int(libbpf.program_info(fd).id) for fd in programs.values())
        try:
            filters.guard(link.index, programs, ours, inside=is_inside(link.name, self._inside))
        finally:
            for fd in programs.values():
                os.close(fd)
        try:
            # A panic stops the programs first and looks for filters then: one that was attached after it looked finds
            # the word here.
            self._require_no_panic()
        except InterfaceError:
            filters.unguard(link.index, ours)
            raise
        # Last: what stands in this map, the gate takes for guarded.
        self._tell_gate(link.index, kind_of(link.name, self._inside))

    def _require_no_panic(self) -> None:
        if Config.unpack(self._config.get(bytes(4)) or b"").mode == Mode.PANIC:
            raise InterfaceError(_TAKEN_DOWN, hint="Start the engine again.")

    def _programs(self) -> dict[str, int]:
        self._require_no_panic()
        try:
            return {pin.name: libbpf.obj_get(pin) for pin in sorted(self._pins.programs.iterdir())}
        except OSError as error:
            raise InterfaceError(_TAKEN_DOWN, hint="Start the engine again.") from error

    def _ours(self) -> frozenset[int]:
        programs = self._programs()
        ours = frozenset(int(libbpf.program_info(fd).id) for fd in programs.values())
        for fd in programs.values():
            os.close(fd)
        return ours

    def _tell_gate(self, index: int, kind: InterfaceKind | None) -> None:
        interfaces = Map(self._pins.maps / "interfaces")
        try:
            if kind is not None:
                interfaces.put(index.to_bytes(4, "little"), int(kind).to_bytes(4, "little"))
            else:
                interfaces.remove(index.to_bytes(4, "little"))
        except OSError as error:
            raise InterfaceError(f"Interface {index} could not be noted for the gate: {error.strerror}") from error
        finally:
            interfaces.close()

    def close(self) -> None:
        self._config.close()


def _exists(link: Link) -> bool:
    with contextlib.suppress(OSError):
        return socket.if_indextoname(link.index) == link.name
    return False
