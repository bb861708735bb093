"""Rego modules as the interpreter parsed them: packages, imports, definitions and the references in them.

The tree is regorus's own (`get_ast_as_json`): every node is `{Kind: {"span": ..., ...}}`. Spans count bytes, and
the line and column of a dotted reference are those of its last part, so places are computed from byte offsets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from engine.policy.bundle import Module
from engine.policy.findings import Finding

Node = dict[str, Any]
Path = tuple[str, ...]

MAX_COLUMNS = 1024
"""regorus refuses longer lines, OPA does not."""

_REFERENCE = frozenset({"Var", "RefDot", "RefBrack"})
_ERROR_PLACE = re.compile(r"-->\s*(?P<file>[^\n]*?):(?P<line>\d+):(?P<col>\d+)\s*\n")
_ERROR_TEXT = re.compile(r"error: (?P<text>.*)", re.DOTALL)


@dataclass(frozen=True)
class Place:
    file: str
    line: int
    col: int

    def finding(self, message: str, mend: str, *, warning: bool = False) -> Finding:
        """Return a finding at this place."""
        return Finding(self.file, self.line, self.col, message, mend, warning)


@dataclass(frozen=True)
class Reference:
    """`a.b["c"][x].d`: root `a`, constant prefix `("b", "c")`; `whole` when nothing variable follows."""

    root: str
    prefix: Path
    whole: bool
    place: Place


@dataclass(frozen=True)
class Call:
    """A call of a function by its dotted name; `arguments` are nodes."""

    name: str
    arguments: Sequence[Node]
    place: Place


@dataclass(frozen=True)
class Definition:
    """One definition of a rule; a rule may have several. `path`: package and the constant part of the head.

    `form`: value (`x := ...`, `x if ...`), set (`x contains ...`), object (a head with a variable key), function,
    default. `bodies` are the tree's own; `value` the assigned node, if any.
    """

    path: Path
    package: Path
    form: str
    place: Place
    bodies: Sequence[Node]
    value: Node | None
    head: Node
    arguments: Sequence[Node] = ()

    @property
    def name(self) -> str:
        return self.path[len(self.package)]


@dataclass
class ParsedModule:
    """One module. `imports`: local name → path that begins with "data" or "input"; `keywords`: the rest."""

    file: str
    text: str
    package: Path
    package_place: Place
    imports: dict[str, Path] = field(default_factory=dict)
    keywords: list[tuple[Path, Place]] = field(default_factory=list)
    definitions: list[Definition] = field(default_factory=list)

    def place(self, node: Any) -> Place:
        """Return where a node begins; columns count characters."""
        return _place(self.file, self.text.encode(), node)


def kind(node: Any) -> tuple[str, Node] | None:
    """Return (kind, fields) when this is a node of the tree."""
    if isinstance(node, dict) and len(node) == 1:
        ((name, fields),) = node.items()
        if name[:1].isupper() and isinstance(fields, dict):
            return name, fields
    return None


def parts_of(node: Node) -> tuple[Node, list[str | Node]]:
    """Split a reference into its base node and what follows: text where constant, a node where not."""
    tail: list[str | Node] = []
    while True:
        found = kind(node)
        if found is None:
            break
        name, fields = found
        if name == "RefDot":
            tail.append(fields["field"][1])
        elif name == "RefBrack":
            index = kind(fields["index"])
            constant = index is not None and index[0] in ("String", "RawString")
            tail.append(index[1]["value"] if constant and index is not None else fields["index"])
        else:
            break
        node = fields["refr"]
    return node, tail[::-1]


def prefix_of(parts: Sequence[str | Node]) -> Path:
    """Return the constant parts up to the first variable one."""
    constant: list[str] = []
    for part in parts:
        if not isinstance(part, str):
            break
        constant.append(part)
    return tuple(constant)


def first_offset(node: Any) -> int:
    """Return the byte offset at which a node begins."""
    found = kind(node)
    if found is None:
        return 0
    offset: int = found[1].get("span", {}).get("start", 0)
    return offset


def _place(file: str, source: bytes, node: Any) -> Place:
    start = first_offset(node)
    before = source[:start]
    line_start = before.rfind(b"\n") + 1
    return Place(file, before.count(b"\n") + 1, len(before[line_start:].decode(errors="replace")) + 1)


class Reader:
    """Reads the references and calls of one module's nodes, with places."""

    def __init__(self, module: ParsedModule) -> None:
        self._file = module.file
        self._source = module.text.encode()

    def place(self, node: Any) -> Place:
        return _place(self._file, self._source, node)

    def uses(self, node: Any) -> Iterator[Reference | Call]:
        """Yield every reference and call below a node, outermost first."""
        found = kind(node)
        if found is None:
            if isinstance(node, dict):
                for inner in node.values():
                    yield from self.uses(inner)
            elif isinstance(node, list):
                for inner in node:
                    yield from self.uses(inner)
            return
        name, fields = found
        if name in _REFERENCE:
            base, parts = parts_of(node)
            variable = kind(base)
            if variable is not None and variable[0] == "Var":
                prefix = prefix_of(parts)
                yield Reference(variable[1]["value"], prefix, len(prefix) == len(parts), self.place(node))
            else:
                yield from self.uses(base)
            for part in parts:
                if not isinstance(part, str):
                    yield from self.uses(part)
        elif name == "Call":
            base, parts = parts_of(fields["fcn"])
            variable = kind(base)
            if variable is not None and variable[0] == "Var":
                dotted = ".".join([variable[1]["value"], *prefix_of(parts)])
                yield Call(dotted, fields["params"], self.place(node))
            yield from self.uses(fields["params"])
        else:
            for inner in fields.values():
                yield from self.uses(inner)


def nodes(node: Any, wanted: str) -> list[Node]:
    """Return the fields of every node of one kind, at any depth, in the order of the text."""
    found = []
    # Not by generators within generators: each candidate is searched dozens of times.
    waiting = [node]
    while waiting:
        at = waiting.pop()
        if isinstance(at, dict):
            fields = at.get(wanted)
            if len(at) == 1 and isinstance(fields, dict):
                found.append(fields)
            waiting.extend(reversed(at.values()))
        elif isinstance(at, list):
            waiting.extend(reversed(at))
    return found


def read_module(module: Module, tree: bytes) -> ParsedModule:
    """Read one module's tree."""
    (document,) = msgspec.json.decode(tree)
    syntax = document["ast"]
    source = module.text.encode()
    base, parts = parts_of(syntax["package"]["refr"])
    found = kind(base)
    package = ((found[1]["value"],) if found else ()) + prefix_of(parts)
    parsed = ParsedModule(
        module.file, module.text, package, _place(module.file, source, {"Package": syntax["package"]})
    )
    for item in syntax["imports"]:
        base, parts = parts_of(item["refr"])
        found = kind(base)
        path = ((found[1]["value"],) if found else ()) + prefix_of(parts)
        if path[:1] in (("data",), ("input",)):
            alias = source[item["as"]["start"] : item["as"]["end"]].decode() if item.get("as") else path[-1]
            parsed.imports[alias] = path
        else:
            parsed.keywords.append((path, _place(module.file, source, item["refr"])))
    for rule in syntax["rules"]:
        parsed.definitions.append(_definition(rule, package, module.file, source))
    return parsed


def _definition(rule: Node, package: Path, file: str, source: bytes) -> Definition:
    found = kind(rule)
    assert found is not None  # noqa: S101 - the tree's own shape
    name, fields = found
    place = _place(file, source, rule)
    if name == "Default":
        path, _ = _head_path(fields["refr"], package)
        form = "default"
        return Definition(path, package, form, place, (), fields["value"], fields["refr"], fields.get("args") or ())
    ((head_kind, head),) = fields["head"].items()
    path, constant = _head_path(head["refr"], package)
    assigned = head.get("assign")
    value = assigned["value"] if assigned else head.get("key")
    form = {"Set": "set", "Func": "function"}.get(head_kind, "value" if constant else "object")
    return Definition(path, package, form, place, fields["bodies"], value, head["refr"], head.get("args") or ())


def _head_path(reference: Node, package: Path) -> tuple[Path, bool]:
    base, parts = parts_of(reference)
    found = kind(base)
    root = (found[1]["value"],) if found else ()
    prefix = prefix_of(parts)
    return (*package, *root, *prefix), len(prefix) == len(parts)


def long_lines(module: Module) -> list[Finding]:
    """Return a finding for each line that the embedded evaluator would refuse."""
    message = f"the line is longer than {MAX_COLUMNS} columns"
    mend = "break the line, or move the list into JSON data"
    return [
        Finding(module.file, number, MAX_COLUMNS + 1, message, mend)
        for number, line in enumerate(module.text.split("\n"), 1)
        if len(line.encode()) > MAX_COLUMNS
    ]


def words_to_finding(words: str, file: str, mend: str) -> Finding:
    """Turn the interpreter's own words into a finding; `file` where they name none."""
    place = _ERROR_PLACE.search(words)
    text = _ERROR_TEXT.search(words)
    message = " ".join((text["text"] if text else words).split()) or "not readable"
    if place is None:
        return Finding(file, 0, 0, message, mend)
    return Finding(place["file"].strip() or file, int(place["line"]), int(place["col"]), message, mend)
