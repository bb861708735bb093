"""Interfaces that come and go while the engine runs: guarded, let go, and told of."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from engine.alerts.alert import Kind, Severity
from engine.errors import SallyportError
from engine.kernel.links import Changes, Keeper, LinkWatch, News, What
from engine.kernel.pins import Pins
from engine.runtime.troubles import Troubles
from engine.service.machine import Machine

_SUMMARIES = {
    What.GUARDED: "interface {name} is guarded from now on",
    What.RESTORED: "interface {name} had a filter of the gate taken off and has it again: {why}",
    What.RENAMED: "interface {name} is guarded under its new name: {why}",
    What.GONE: "interface {name} is gone",
    What.REFUSED: "interface {name} is not guarded: {why}",
}
_SEVERITIES = {What.RESTORED: Severity.CRITICAL, What.GONE: Severity.WARNING}


class Interfaces:
    """Belongs to the event loop's thread. `changed` is called after interfaces came or went."""

    def __init__(
        self, words: Sequence[str], inside: Sequence[str], pins: Pins, machine: Machine, troubles: Troubles,
        changed: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._words = words
        self._machine = machine
        self._troubles = troubles
        self._changed = changed
        self._watch = LinkWatch()
        self._keeper = Keeper(pins, words, machine.interfaces, inside)
        self._heard = Changes(lost=True)
        """Since the loader looked, nobody has: the first look is at everything."""
        self._looking = asyncio.Lock()
        self._looks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def start(self) -> None:
        """Look at everything once, then follow what netlink tells."""
        await self.look()
        asyncio.get_running_loop().add_reader(self._watch.fileno(), self._hear)

    def _hear(self) -> None:
        """Take what netlink told, and look into it."""
        self._heard |= self._watch.read()
        self._looks.add(task := asyncio.get_running_loop().create_task(self.look()))
        task.add_done_callback(self._looks.discard)

    async def retry(self) -> None:
        """Look again where something could not be guarded, or could not be looked at."""
        if not self._closed and (self._keeper.trying or self._heard.lost):
            await self.look()

    async def look(self) -> None:
        """Guard what is to be guarded and let go what is gone. A fault is told, not raised."""
        async with self._looking:
            heard, self._heard = self._heard, Changes()
            try:
                news = await asyncio.to_thread(self._keeper.look, heard)
            except (SallyportError, OSError) as error:
                self._heard |= Changes(lost=True)
                self._troubles.begin("interfaces", f"interfaces cannot be looked after: {error}", Kind.INTERFACE)
                return
            self._troubles.over("interfaces")
            for one in news:
                self._take(one)
            if any(one.what in (What.GUARDED, What.GONE) for one in news):
                await self._changed()

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
        # A look under way ends in its thread whatever becomes of its task.
        await asyncio.gather(*self._looks, return_exceptions=True)
        self._watch.close()
        self._keeper.close()
