"""The loader's process: short-lived, it brings the programs into the kernel, attaches them, and is gone.

Where programs have to be compiled, it and its children are the only processes that import bcc. It reads an order as
JSON on stdin and answers with one JSON line: a result, or an error of the engine's family. What it may be told
beforehand, as its one argument, is what the programs depend on: then they are got ready while whoever starts it
prepares the order.

    python -m engine.kernel.process ['{"state_dir": "...", "sizes": {}}'] < order.json
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from engine.errors import SallyportError
from engine.kernel.order import Loaded, Order
from engine.kernel.supply import Request, Supply


def main(arguments: list[str]) -> int:
    supply = Supply(Request(**json.loads(arguments[0]))) if arguments and os.geteuid() == 0 else None
    # Netlink: a tenth of a second, while compilers or the engine are at work.
    from engine.kernel.loader import load  # noqa: PLC0415

    text = sys.stdin.read()
    try:
        if not text:
            return 0  # nobody gave an order: the engine found its words or its configuration wanting
        order = Order(**json.loads(text))
        request = Request(order.state_dir, order.sizes)
        if supply is None or supply.request != request:
            supply = Supply(request)
        print(json.dumps(_answer(lambda: load(order, supply))))
    finally:
        if supply is not None:
            supply.abandon()
    return 0


def _answer(work: Callable[[], Loaded]) -> dict[str, Any]:
    try:
        return {"loaded": asdict(work())}
    except SallyportError as error:
        return {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    except OSError as error:
        return {"error": "KernelError", "message": f"Loading failed: {error}", "hint": ""}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
