"""Interfaces that come and go while the engine runs: guarded, let go, and told of.

What comes in by them is the gate's business only under a policy that judges it, or that reads what resolvers answer:
the program at their ingress is there before such a policy is in force, and goes after it (docs/adr/0016).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from engine.alerts.alert import Kind, Severity
from engine.errors import InterfaceError, SallyportError
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
        self._looks = asyncio.Lock()
        self._ingress = True
        self._due = False
        self._failed = False
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    def start(self) -> None:
        """Follow what netlink tells. First a look at everything: since the loader's, nobody has had one."""
        asyncio.get_running_loop().add_reader(self._watch.fileno(), self._hear)
        self._look_soon()

    @property
    def lacking(self) -> Mapping[str, str]:
        """Guarded interfaces where what comes in is to be judged and cannot be: name -> why."""
        return self._keeper.lacking

    async def require_ingress(self) -> None:
        """Return when what comes in meets the gate on every guarded interface. KernelError or InterfaceError when that
        cannot be had: then it is as it was."""
        async with self._looks:
            if self._ingress and self._keeper.known.ingress:
                return
            before, self._ingress = self._ingress, True
            try:
                await self._look_once()
                if self._keeper.lacking:
                    names = ", ".join(self._keeper.lacking)
                    why = "; ".join(dict.fromkeys(self._keeper.lacking.values()))
                    raise InterfaceError(
                        f"What comes in by {names} cannot be judged: {why}",
                        hint=f"Look at what hangs there: tc filter show dev {next(iter(self._keeper.lacking))} ingress",
                    )
            except SallyportError:
                self._ingress = before
                self._look_soon()
                raise

    def spare_ingress(self) -> None:
        """Have nothing called for what comes in: nothing in force judges it any more."""
        if self._ingress:
            self._ingress = False
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
                async with self._looks:
                    news = await self._look_once()
                if any(one.what in (What.GUARDED, What.GONE) for one in news):
                    await self._changed()
                await asyncio.sleep(_PAUSE)
        except Exception as error:  # noqa: BLE001 - whatever it was, everybody hears of it and the next look is tried
            self._failed = True
            why = error.message if isinstance(error, SallyportError) else repr(error)
            self._troubles.begin("interfaces", f"interfaces cannot be looked after: {why}", Kind.INTERFACE)
        finally:
            self._looking = None

    async def _look_once(self) -> list[News]:
        news = await self._keeper.look(ingress=self._ingress)
        self._failed = False
        self._troubles.over("interfaces")
        for one in news:
            self._take(one)
        return news

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
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._looks.acquire(), _END)
            self._looks.release()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})
        await self._keeper.end()
        self._watch.close()
