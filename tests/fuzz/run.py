"""Run Python targets: `python -m tests.fuzz.run TARGET[,TARGET...] [libFuzzer's options] [CORPUS...]`.

`{}` in an option stands for the target's name. With atheris (coverage-guided) where it can be had, else blind: see
blind.py. Each target runs in a child of its own, because libFuzzer ends the process, and because importing under
instrumentation takes longer than a smoke run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

ATHERIS = Path(__file__).parents[2] / "build/fuzz/python"
"""Where scripts/fuzz puts it: outside of .venv, so that nobody else downloads 35 MB."""

Target = Callable[[bytes], None]
Fuzz = Callable[[Target, list[str]], None]


def _coverage_guided(target: Target, options: list[str]) -> None:
    import atheris  # type: ignore[import-not-found, unused-ignore]

    atheris.Setup([sys.argv[0], *options], target)
    atheris.Fuzz()


def load() -> tuple[dict[str, Target], Fuzz]:
    """Import the targets, instrumented if that can be done; return them and what fuzzes one."""
    sys.path.append(str(ATHERIS))
    try:
        import atheris  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        from tests.fuzz.blind import fuzz
        from tests.fuzz.targets import TARGETS

        return TARGETS, fuzz
    with atheris.instrument_imports(include=["engine", "audit"], exclude=["engine.kernel"]):
        from tests.fuzz.targets import TARGETS
    return TARGETS, _coverage_guided


def main() -> int:
    names, options = sys.argv[1].split(","), sys.argv[2:]
    targets, fuzz = load()
    worst = 0
    for name in names:
        print(f"== {name}", file=sys.stderr, flush=True)
        child = os.fork()
        if child == 0:
            fuzz(targets[name], [option.replace("{}", name) for option in options])
            os._exit(0)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        print(f"== {name} ended {code}", file=sys.stderr, flush=True)
        worst = max(worst, int(code != 0))
    return worst


if __name__ == "__main__":
    sys.exit(main())
