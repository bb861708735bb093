"""From a syntax tree to a summary: what a module may refer to, and what it defines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engine.policy.rule import DECISION, ROOT_PACKAGE, RULES_PACKAGE
from engine.policy.sources import WORDS
from engine.policy.summary import Body, Summary
from engine.policy.syntax import Call, Definition, ParsedModule, Path, Reader


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
