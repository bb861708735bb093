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
from engine.lab.plain import Caller, Listener, Sender
from engine.lab.probe import Probe

Answer = dict[str, Any]


class Actor:
    """Orders by name; each answers with a JSON-ready object."""

    def __init__(self) -> None:
        self._kept: dict[str, Dialogue] = {}
        self._capture: Capture | None = None
        self._listener: Listener | None = None
        self._callers: dict[str, Caller] = {}
        self._sender = Sender()
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
            "send": self._sender.send,
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
        self._capture = Capture(device)
        return {}

    def captured(self, address: str, port: int, needle: str = "") -> Answer:
        if self._capture is None:
            return {"error": "there is no capture"}
        return self._capture.take(address, port, needle.encode())

    def listen(self, port: int) -> Answer:
        self._listener = Listener(port)
        return {}

    def accepted(self) -> Answer:
        return {"peers": self._listener.accepted() if self._listener else []}

    def call(self, key: str, address: str, port: int, source: str) -> Answer:
        self._callers[key] = Caller(address, port, source)
        return {}

    def called(self, key: str) -> Answer:
        return self._callers[key].state()

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
