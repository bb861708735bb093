"""A program that speaks for one side of the lab, and does what it is told.

`python -m engine.lab.actor`: one JSON object a line in, one a line out, until its input ends. The scenarios' Python
client is this program: it stays, so that a connection can be kept over what happens between two orders. It imports
nothing of the engine but the lab.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from engine.lab.capture import Capture
from engine.lab.dialogue import Dialogue, fetch
from engine.lab.lookup import Resolver, look_up
from engine.lab.plain import Caller, Datagrams, Listener, Volley
from engine.lab.probe import Probe

Answer = dict[str, Any]


class Actor:
    """Orders by name; each answers with a JSON-ready object."""

    def __init__(self) -> None:
        self._kept: dict[str, Dialogue] = {}
        self._captures: list[Capture] = []
        self._listeners: dict[int, Listener] = {}
        self._callers: dict[str, Caller] = {}
        self._datagrams = Datagrams()
        self._resolver: Resolver | None = None
        self._probe: Probe | None = None
        self.orders: dict[str, Callable[..., Answer]] = {
            "fetch": fetch,
            "open": self.open,
            "again": self.again,
            "capture": self.capture,
            "captured": self.captured,
            "listen": self.listen,
            "accepted": self.accepted,
            "call": self.call,
            "called": self.called,
            "volley": self.volley,
            "send": self._datagrams.send,
            "received": self._datagrams.received,
            "resolve": self.resolve,
            "look_up": look_up,
            "probe": self.probe,
            "probed": self.probed,
        }

    def open(self, key: str, **how: Any) -> Answer:
        """Open a connection and keep it."""
        dialogue = Dialogue()
        answer = dialogue.begin(**how)
        if "error" not in answer:
            self._kept[key] = dialogue
        return answer

    def again(self, key: str) -> Answer:
        """Ask once more over a connection that is kept."""
        return self._kept[key].request()

    def capture(self, device: str) -> Answer:
        """Capture on this device too."""
        self._captures.append(Capture(device))
        return {}

    def captured(self, address: str, port: int, needle: str = "") -> Answer:
        if not self._captures:
            return {"error": "there is no capture"}
        taken = [capture.take(address, port, needle.encode()) for capture in self._captures]
        return {member: sum(each[member] for each in taken) for member in taken[0]}

    def listen(self, port: int) -> Answer:
        """Listen at this port, unless that is done already."""
        if port not in self._listeners:
            self._listeners[port] = Listener(port)
        return {}

    def accepted(self, port: int) -> Answer:
        return {"peers": self._listeners[port].accepted()}

    def call(self, key: str, address: str, port: int, source: str) -> Answer:
        self._callers[key] = Caller(address, port, source)
        return {}

    def called(self, key: str) -> Answer:
        return self._callers[key].state()

    def volley(self, address: str, ports: list[int], source: str) -> Answer:
        return Volley(address, ports, source).end()

    def resolve(self, address: str, names: dict[str, str]) -> Answer:
        """Answer DNS questions at this address from now on."""
        self._resolver = Resolver(address, names)
        return {}

    def probe(self, **how: Any) -> Answer:
        self._probe = Probe(**how)
        return {}

    def probed(self, *, end: bool = False) -> Answer:
        if self._probe is None:
            return {"error": "there is no probe"}
        return self._probe.end() if end else self._probe.counts()


def main() -> None:
    actor = Actor()
    for line in sys.stdin:
        order = json.loads(line)
        name = order.pop("do")
        print(json.dumps(actor.orders[name](**order)), flush=True)


if __name__ == "__main__":
    main()
