"""What must be known of a module to tell what it can reach: small, and kept by the engine, which has no parser.

A syntax tree is a hundred times the size of its file, so trees never leave the process that examines a candidate; it
makes the summaries (summarise.py).
"""

from __future__ import annotations

from collections.abc import Container

import msgspec

from engine.policy.findings import Finding
from engine.policy.sources import WORDS

Path = tuple[str, ...]
Shape = tuple[Path, tuple[Path, ...], tuple[Path, ...]]


class Body(msgspec.Struct, frozen=True, array_like=True):
    """One body of a definition: the definition's name, and the lines of its statements in order."""

    name: str
    lines: tuple[int, ...]


class Summary(msgspec.Struct, frozen=True, array_like=True):
    """One module. `mentions`: every data path that it may refer to, by its constant part; a local variable counts as
    the definition of its name that the package may have. `defines`: the paths of its definitions. `words`: those of
    the parser, for a module that it refused."""

    file: str
    package: Path = ()
    mentions: tuple[Path, ...] = ()
    defines: tuple[Path, ...] = ()
    bodies: tuple[Body, ...] = ()
    words: str = ""

    @property
    def shape(self) -> Shape:
        """What decides which modules and data it is examined with."""
        return self.package, self.mentions, self.defines


def unevaluated(summary: Summary, covered: Container[int]) -> list[Finding]:
    """Return a warning for the first statement of each body that no generated input reached. `covered`: the lines of
    the module that were evaluated."""
    return [
        Finding(
            summary.file, line, 1, f"{body.name} is never evaluated beyond this point by the warm-up",
            "try it in a Rego test", warning=True,
        )
        for body in summary.bodies
        # Evaluated once at load, without input.
        if body.name not in WORDS
        for line in [line for line in body.lines if line not in covered][:1]
    ]  # fmt: skip
