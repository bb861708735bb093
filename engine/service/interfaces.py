"""Interfaces that come and go while the engine runs: guarded, let go, and told of."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from engine.alerts.alert import Kind, Severity
from engine.errors import SallyportError
from engine.kernel.links import KeeperProcess, Known, LinkWatch, News, What, is_inside
from engine.runtime.troubles import Troubles
from engine.service.machine import Machine

_SUMMARIES = {
    What.GUARDED: "interface {name} is guarded from now on",
    What.RESTORED: "interface {name} had a filter of the gate taken off and has it again: {why}",
    What.RENAMED: "interface {name} is guarded under its new name: {why}",
    What.GONE: "interface {name} is gone",
    What.REFUSED: "interface {name} is not guarded: {why}",
}
_PAUSE = 0.02
"""Seconds between two looks: the filters that the first one attached are told of too."""
_END = 5.0
"""Seconds that a look under way gets to end by itself."""
_SEVERITIES = {What.RESTORED: Severity.CRITICAL, What.GONE: Severity.WARNING}


class Interfaces:
    """Belongs to the event loop's thread. `changed` is called after interfaces came or went."""

    def __init__(
        self, words: Sequence[str], inside: Sequence[str], state_dir: Path, machine: Machine, troubles: Troubles,
        changed: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._words = words
        self._inside = inside
        self._machine = machine
        self._troubles = troubles
        self._changed = changed
        self._watch = LinkWatch()
        self._keeper = KeeperProcess(state_dir, Known(list(words), list(inside), dict(machine.interfaces)))
        self._due = False
        self._failed = False
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    def start(self) -> None:
        """Follow what netlink tells. First a look at everything: since the loader's, nobody has had one."""
        asyncio.get_running_loop().add_reader(self._watch.fileno(), self._hear)
        self._look_soon()

    def retry(self) -> None:
        """Look again where something could not be guarded, or could not be looked at."""
        if self._keeper.known.trying or self._failed:
            self._look_soon()

    def _hear(self) -> None:
        self._watch.drain()
        self._look_soon()

    def _look_soon(self) -> None:
        self._due = True
        if self._looking is None and not self._closed:
            self._looking = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        """One look after the other, for as long as something changes. A fault is told, not raised."""
        try:
            while self._due and not self._closed:
                self._due = False
                news = await self._keeper.look()
                self._failed = False
                self._troubles.over("interfaces")
                for one in news:
                    self._take(one)
                if any(one.what in (What.GUARDED, What.GONE) for one in news):
                    await self._changed()
                await asyncio.sleep(_PAUSE)
        except Exception as error:  # noqa: BLE001 - whatever it was, everybody hears of it and the next look is tried
            self._failed = True
            why = error.message if isinstance(error, SallyportError) else repr(error)
            self._troubles.begin("interfaces", f"interfaces cannot be looked after: {why}", Kind.INTERFACE)
        finally:
            self._looking = None

    def _take(self, news: News) -> None:
        if news.what is not What.REFUSED:
            loaded, known = self._machine.loaded, self._machine.interfaces
            before = known.pop(news.index, "")
            mode = "off"
            if loaded.interfaces.get(before) == news.index:
                del loaded.interfaces[before]
                mode = loaded.xdp.pop(before, mode)
            if news.what is not What.GONE:
                known[news.index] = news.name
                loaded.interfaces[news.name] = news.index
                if not is_inside(news.name, self._inside):
                    loaded.xdp[news.name] = mode
        self._tell(news)

    def _tell(self, news: News) -> None:
        summary = _SUMMARIES[news.what].format(name=news.name, why=news.why)
        key = f"interface {news.name}"
        if news.what is What.REFUSED or (news.what is What.GONE and news.name in self._words):
            self._troubles.begin(key, summary, Kind.INTERFACE)
            return
        self._troubles.over(key)
        self._troubles.alert(Kind.INTERFACE, _SEVERITIES.get(news.what, Severity.INFO), summary)

    async def close(self) -> None:
        """Let be. Before the gate is taken down: what is detached then must not be put back."""
        if self._closed:
            return
        self._closed = True
        asyncio.get_running_loop().remove_reader(self._watch.fileno())
        if self._looking is not None and not (await asyncio.wait({self._looking}, timeout=_END))[0]:
            self._looking.cancel()
            await asyncio.wait({self._looking})
        await self._keeper.close(kill=True)
        self._watch.close()
