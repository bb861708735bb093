"""The actors as the lab sees them: give an order, get the answer."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from typing import Any

from engine.lab.errors import LabError
from engine.lab.place import Place


class Remote:
    """One actor in its place."""

    def __init__(self, place: Place, program: str = "engine.lab.actor") -> None:
        """`program`: the module that does what it is told, one JSON object a line in, one a line out."""
        self._process = place.start([sys.executable, "-m", program], stderr=subprocess.PIPE)
        self._rest = b""

    def ask(self, order: str, seconds: float = 120.0, **how: Any) -> dict[str, Any]:
        """Give an order and return its answer. LabError when the actor dies or stays silent for `seconds`."""
        self.tell(order, **how)
        return self.hear(order, seconds)

    def tell(self, order: str, **how: Any) -> None:
        """Give an order and do not wait; the answer is to be heard before the next order."""
        stdin = self._process.stdin
        assert stdin is not None  # noqa: S101 - pipes were asked for
        try:
            stdin.write(json.dumps({"do": order, **how}).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise self._dead(order) from None

    def hear(self, order: str, seconds: float = 120.0) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None  # noqa: S101
        deadline = time.monotonic() + seconds
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([stdout], [], [], left)[0]:
                raise LabError(f"The lab's Python client did not finish {order!r} within {seconds:g} s")
            piece = os.read(stdout.fileno(), 65536)
            if not piece:
                raise self._dead(order)
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _dead(self, order: str) -> LabError:
        self._process.kill()
        words = self._process.communicate()[1].decode(errors="replace").strip().splitlines()
        return LabError(f"The lab's Python client ended at {order!r}: {words[-1] if words else 'it says nothing'}")
