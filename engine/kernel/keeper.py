"""Looks after the interfaces: a child of the engine, because netlink's library costs 19 MiB that the engine does not
carry. It ends when nothing has changed for a while. Where a pattern says that interfaces come and go it stays: until
its filters are there a new one passes what it likes, and that must not wait for imports.

    python -m engine.kernel.keeper < looks.jsonl

One JSON line in, one JSON line out. The engine keeps what is known between two looks.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from engine.abi.numbers import InterfaceKind, Mode, Present
from engine.abi.records import Config
from engine.errors import InterfaceError, SallyportError
from engine.kernel import filters, libbpf
from engine.kernel.links import Known, Link, News, What, is_inside, is_pattern, kind_of, matching, unfit
from engine.kernel.maps import Map
from engine.kernel.netlink import links, netlink
from engine.kernel.pins import Pins

_IDLE = 10.0
"""Seconds without anything to do until the child goes away."""
_AT_INGRESS = Present.INBOUND | Present.DNS
"""While neither is set, the program at ingress does nothing."""
_PR_SET_PDEATHSIG = 1


class _TakenDownError(InterfaceError):
    def __init__(self) -> None:
        super().__init__(
            "the gate was taken down beside this engine, which guards nothing any more", hint="Start the engine again."
        )


class Keeper:
    """Keeps the filters on every interface that is to be guarded. Changes `known`.

    An interface that is guarded stays guarded under whatever name it is given later: renaming it must not be a way out.

    `ingress`: what comes in is judged, or about to be. Where it is not, nothing is called for it.
    """

    def __init__(self, pins: Pins, known: Known, *, ingress: bool = True) -> None:
        self._pins = pins
        self._known = known
        self._ingress = ingress
        self.lacking: dict[str, str] = {}
        """Guarded interfaces where what comes in is to be judged and cannot be: name -> why."""
        self._inside = tuple(known.inside)
        words = [*known.words, *known.inside]
        self._names = frozenset(word for word in words if not is_pattern(word))
        self._patterns = tuple(word for word in words if is_pattern(word))
        self._config: Map | None = None
        self._programs: dict[str, int] = {}
        self._ours: frozenset[int] = frozenset()

    def look(self) -> list[News]:
        """Bring the filters and the `interfaces` map in line with what interfaces there are; say what was done."""
        began = time.monotonic()
        self._known.trying = False
        with netlink("look after the interfaces") as ip:
            present = {link.index: link for link in links(ip)}
            news = self._forget(present)
            try:
                self._open()
                for index in self._known.guarded:
                    news += self._restore(ip, present[index])
                for link in self._unguarded(present.values()):
                    news += self._guard(ip, link, began)
            except _TakenDownError as error:
                for link in (*map(present.__getitem__, self._known.guarded), *self._unguarded(present.values())):
                    news += self._refuse(link, error.message)
                if self._ingress:
                    self.lacking = dict.fromkeys(self._known.guarded.values(), error.message)
            finally:
                self._close()
        # What was never there does not count as taken off.
        self._known.ingress = self._ingress and (self._known.ingress or not self.lacking)
        return news

    def _unguarded(self, present: Iterable[Link]) -> list[Link]:
        present = [link for link in present if link.index not in self._known.guarded]
        matched = matching(self._patterns, present)
        return matched + [link for link in present if link.name in self._names and link not in matched]

    def _forget(self, present: Mapping[int, Link]) -> list[News]:
        news = []
        for index, (name, _) in list(self._known.refused.items()):
            if index not in present:
                del self._known.refused[index]
                self._known.guarded.setdefault(index, name)
        for index, name in list(self._known.guarded.items()):
            if index not in present:
                del self._known.guarded[index]
                self._tell_gate(index, None)
                news.append(News(What.GONE, index, name))
            elif present[index].name != name:
                self._known.guarded[index] = present[index].name
                news.append(News(What.RENAMED, index, present[index].name, f"it was {name}"))
        return news

    def _guard(self, ip: IPRoute, link: Link, began: float) -> list[News]:
        why = unfit(link)
        try:
            if not why:
                self._attach(ip, link)
                self._known.guarded[link.index] = link.name
                self._known.refused.pop(link.index, None)
                return [News(What.GUARDED, link.index, link.name, seconds=time.monotonic() - began)]
        except _TakenDownError:
            raise
        except SallyportError as error:
            why = error.message
            self._known.trying = True
        return self._refuse(link, why)

    def _restore(self, ip: IPRoute, link: Link) -> list[News]:
        inside = is_inside(link.name, self._inside)
        absent = filters.missing(ip, link.index, self._ours, inside=inside, ingress=self._ingress)
        if not inside and not self._ingress:
            self._spare(ip, link)
        if not absent:
            return []
        # One that had not been wanted until now is missed by nobody.
        taken = [name for name in absent if name != filters.AT_INGRESS or self._known.ingress]
        try:
            self._attach(ip, link)
        except _TakenDownError:
            raise
        except SallyportError as error:
            if filters.AT_INGRESS in absent and _exists(link):
                self.lacking[link.name] = error.message
            if not taken:
                return []
            self._known.trying = True
            return self._refuse(link, error.message)
        self._known.refused.pop(link.index, None)
        return [News(What.RESTORED, link.index, link.name, f"without {', '.join(taken)} for a moment")] if taken else []

    def _spare(self, ip: IPRoute, link: Link) -> None:
        """Take away what would be called for every packet that comes in, and do nothing. Never while the gate's own
        word is that it has something to do."""
        if self._present() & _AT_INGRESS:
            return
        program = int(libbpf.program_info(self._programs[filters.AT_INGRESS]).id)
        try:
            filters.detach_filter(ip, link.index, filters.GUARDS[filters.AT_INGRESS], frozenset({program}))
        except SallyportError:
            # Where it stays it does no harm but its cost.
            self._known.trying |= _exists(link)

    def _refuse(self, link: Link, why: str) -> list[News]:
        if self._known.refused.get(link.index) == (link.name, why) or not _exists(link):
            return []
        self._known.refused[link.index] = (link.name, why)
        return [News(What.REFUSED, link.index, link.name, why)]

    def _attach(self, ip: IPRoute, link: Link) -> None:
        filters.guard(
            ip, link.index, self._programs, self._ours, inside=is_inside(link.name, self._inside),
            ingress=self._ingress,
        )  # fmt: skip
        try:
            # A panic stops the programs first and looks for filters then: one that was attached after it looked finds
            # the word here.
            self._require_no_panic()
        except _TakenDownError:
            filters.unguard(ip, link.index, self._ours)
            raise
        # Last: what stands in this map, the gate takes for guarded.
        self._tell_gate(link.index, kind_of(link.name, self._inside))

    def _open(self) -> None:
        """Open what the gate has pinned."""
        try:
            self._config = Map(self._pins.maps / "config")
            for pin in sorted(self._pins.programs.iterdir()):
                self._programs[pin.name] = libbpf.obj_get(pin)
        except (SallyportError, OSError) as error:
            raise _TakenDownError from error
        self._ours = frozenset(int(libbpf.program_info(fd).id) for fd in self._programs.values())
        self._require_no_panic()

    def _require_no_panic(self) -> None:
        if self._configuration().mode == Mode.PANIC:
            raise _TakenDownError

    def _present(self) -> Present:
        return Present(self._configuration().present)

    def _configuration(self) -> Config:
        if self._config is None:
            raise _TakenDownError
        return Config.unpack(self._config.get(bytes(4)) or b"")

    def _close(self) -> None:
        if self._config is not None:
            self._config.close()
        for fd in self._programs.values():
            os.close(fd)

    def _tell_gate(self, index: int, kind: InterfaceKind | None) -> None:
        try:
            interfaces = Map(self._pins.maps / "interfaces")
        except SallyportError:
            if kind is None:
                return  # the gate was taken down, and its map with it
            raise
        try:
            if kind is not None:
                interfaces.put(index.to_bytes(4, "little"), int(kind).to_bytes(4, "little"))
            else:
                interfaces.remove(index.to_bytes(4, "little"))
        except OSError as error:
            raise InterfaceError(f"Interface {index} could not be noted for the gate: {error.strerror}") from error
        finally:
            interfaces.close()


def _exists(link: Link) -> bool:
    try:
        return socket.if_indextoname(link.index) == link.name
    except OSError:
        return False


def answer(order: dict[str, Any]) -> dict[str, Any]:
    """Carry out one order of the engine's."""
    known = Known.read(order["known"])
    keeper = Keeper(Pins.of(Path(order["state_dir"])), known, ingress=order["ingress"])
    try:
        news = keeper.look()
    except (SallyportError, OSError) as error:
        return {"error": str(error)}
    return {"known": asdict(known), "news": [asdict(each) for each in news], "lacking": keeper.lacking}


def _die_with_engine() -> None:
    """What a dead engine had asked for must not be done to the gate of the next one, however late this child runs."""
    engine = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != engine:
        sys.exit(1)


def main() -> int:
    _die_with_engine()
    idle: float | None = _IDLE
    while select.select([sys.stdin], [], [], idle)[0] and (line := sys.stdin.readline()):
        order = json.loads(line)
        print(json.dumps(answer(order)), flush=True)
        words = (*order["known"]["words"], *order["known"]["inside"])
        idle = None if any(map(is_pattern, words)) else _IDLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
