"""What a person asks for through the control socket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from engine.errors import UsageError
from engine.runtime.gatekeeper import Gatekeeper
from engine.runtime.identity import Identities
from engine.runtime.journal import Journal
from engine.runtime.orders import Order, Orders
from engine.runtime.sources import Sources


class Commands:
    """Answers one request at a time. `changed` is awaited after every change of the settings, before the answer: what
    has been answered is in force."""

    def __init__(
        self, orders: Orders, gatekeeper: Gatekeeper, identities: Identities, journal: Journal, sources: Sources,
        status: Callable[[], Awaitable[Any]], reload: Callable[[], Awaitable[Any]],
        changed: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._orders = orders
        self._gatekeeper = gatekeeper
        self._identities = identities
        self._journal = journal
        self._sources = sources
        self._changed = changed
        self._actions: dict[str, Callable[[dict[str, Any]], Awaitable[Any]]] = {
            "status": lambda _: status(),
            "reload": lambda _: reload(),
            "list": self._list,
            "set": self._set,
            "clear": self._clear,
        }

    async def __call__(self, request: dict[str, Any]) -> Any:
        action = self._actions.get(str(request["command"]))
        if action is None:
            raise UsageError(f"The engine knows no command {request['command']!r}")
        return await action(request)

    async def _list(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        kind = _kind(request)
        listed = [asdict(order) for order in self._orders.of_kind(kind)]
        if kind == "verdict":
            listed += self._sources.listing()
            listed += self._gatekeeper.force.listing(self._identities.record)
        return listed

    async def _set(self, request: dict[str, Any]) -> dict[str, Any]:
        order = Order.make(_order(request))
        self._orders.set(order)
        await self._changed()
        cut = await self._gatekeeper.obey(order) if order.kind == "verdict" else 0
        self._journal.note("command", action="set", cut=cut, **asdict(order))
        return {"set": asdict(order), "cut": cut}

    async def _clear(self, request: dict[str, Any]) -> dict[str, Any]:
        kind = _kind(request)
        if request.get("all"):
            selectors = [order.selector for order in self._orders.of_kind(kind)]
        else:
            selectors = [Order.make(_order(request)).selector]
        cleared = sum(self._orders.clear(selector) for selector in selectors)
        lifted: list[str] = []
        if not request.get("all") and selectors[0][:2] == ("verdict", "source"):
            lifted = self._sources.lift(selectors[0][2])
        if not cleared and not lifted and not request.get("all"):
            raise UsageError("There is no such setting", hint="`list` shows what is set.")
        await self._changed()
        self._journal.note(
            "command", action="clear", kind=kind, selectors=[list(one) for one in selectors], lifted=lifted
        )
        return {"cleared": cleared + len(lifted)}


def _kind(request: dict[str, Any]) -> str:
    kind = request.get("kind")
    if kind not in ("verdict", "strategy"):
        raise UsageError(f"{kind!r} is nothing that can be set", hint="There are verdicts and strategies.")
    return str(kind)


def _order(request: dict[str, Any]) -> dict[str, Any]:
    order = request.get("order")
    if not isinstance(order, dict):
        raise UsageError("The request has no setting")
    return order
