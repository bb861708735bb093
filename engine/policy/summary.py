"""What must be known of a module to tell what it can reach: small, kept by the engine, and made where parsing is safe.

A syntax tree is a hundred times the size of its file, so trees never leave the process that examines a candidate.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

import msgspec

from engine.policy.findings import Finding
from engine.policy.rule import DECISION, ROOT_PACKAGE, RULES_PACKAGE
from engine.policy.sources import WORDS
from engine.policy.syntax import Call, Definition, ParsedModule, Path, Reader

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


def summarise(module: ParsedModule) -> Summary:
    """Return the summary of a module."""
    mentions = {path[1:] for path in module.imports.values() if path[0] == "data"}
    if module.package[:2] == RULES_PACKAGE:
        # Whatever another package defines at a rule's path is the rule's.
        mentions.add(module.package[:3])
    elif module.package == ROOT_PACKAGE:
        mentions |= {(*ROOT_PACKAGE, word) for word in ("default_verdict", "inbound_verdict", *WORDS, DECISION)}
    mentions |= {definition.path for definition in module.definitions}
    for definition in module.definitions:
        mentions |= set(_mentioned(module, definition))
    return Summary(
        module.file,
        module.package,
        tuple(sorted(mentions)),
        tuple(sorted({definition.path for definition in module.definitions})),
        tuple(
            Body(definition.name, tuple(line for line in map(statement_line, body["query"]["stmts"]) if line))
            for definition in module.definitions
            for body in definition.bodies
        ),
    )


def _mentioned(module: ParsedModule, definition: Definition) -> Iterator[Path]:
    """Yield the data paths that a definition may refer to: more than it does, never fewer."""
    nodes = [definition.head, list(definition.bodies), definition.value, list(definition.arguments)]
    for use in Reader(module).uses(nodes):
        root, *rest = use.name.split(".") if isinstance(use, Call) else (use.root, *use.prefix)
        if root == "data":
            yield tuple(rest)
        elif root in module.imports:
            path = module.imports[root]
            if path[0] == "data":
                yield (*path[1:], *rest)
        elif root != "input":
            yield (*module.package, root, *rest)


def statement_line(statement: dict[str, Any]) -> int:
    """Return the line on which a statement begins, 0 when the tree does not say."""
    span = statement.get("span")
    if isinstance(span, dict):
        return int(span.get("line", 0))
    literal = statement.get("literal")
    for fields in literal.values() if isinstance(literal, dict) else ():
        if isinstance(fields, dict):
            return int(fields.get("span", {}).get("line", 0))
    return 0


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
