"""Start the loader, and give it its order later: it gets the programs ready while the engine imports its
modules."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from engine.kernel.order import Loaded, Order, reply


class LoaderProcess:
    """A loader that waits for its order. Without one it goes away by itself when `dismiss` or the engine's end closes
    its input."""

    def __init__(self, state_dir: Path, sizes: dict[str, int]) -> None:
        """`state_dir`, resolved, and `sizes` as the order will have them: it is what the programs depend on."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "engine.kernel.process", json.dumps({"state_dir": str(state_dir), "sizes": sizes})],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    async def load(self, order: Order) -> Loaded:
        """Send the order and return what now stands. Raises the error that the loader tells of.

        The loader is always waited for: ended half way it could leave half of the gate attached.
        """
        text = json.dumps(asdict(order)).encode()
        out, _ = await asyncio.shield(asyncio.to_thread(self._process.communicate, text))
        return reply(out.decode())

    def dismiss(self) -> None:
        """End a loader that got no order."""
        if self._process.returncode is None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()
