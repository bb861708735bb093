"""A client that never stops trying: is there one moment at which the gate stands open?"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from engine.lab.dialogue import Dialogue

PATIENCE = 0.05
"""Seconds that one attempt waits for an answer: the rhythm of the probe where a drop is silent."""


class Probe:
    """Attempts, one after the other, in a thread, until end()."""

    def __init__(self, name: str, address: str, port: int, ca: str) -> None:
        self._how = {"name": name, "address": address, "port": port, "ca": ca, "seconds": PATIENCE}
        self._results: Counter[str] = Counter()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def counts(self) -> dict[str, Any]:
        """`answers`: attempts that got through; `attempts`; `results`: how often each ending was met."""
        results = dict(self._results)
        return {"answers": results.get("answer", 0), "attempts": sum(results.values()), "results": results}

    def end(self) -> dict[str, Any]:
        self._ending.set()
        self._thread.join()
        return self.counts()

    def _run(self) -> None:
        while not self._ending.is_set():
            dialogue = Dialogue()
            answer = dialogue.begin(**self._how)  # type: ignore[arg-type]
            dialogue.close()
            self._results["answer" if "answer" in answer else f"{answer['error']} ({answer['step']})"] += 1
