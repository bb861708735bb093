"""The lint of `not`: every operand below it must be total, that is, never undefined.

OPA hoists the operands of a negated expression: `not f(input.x)` with `input.x` undefined is undefined there (the
rule does not fire), and true in regorus. Of 51 probes with an absent field 29 differed, 26 of them silently, all
under `not`; this lint catches 26 of 26. The negated term itself may be undefined: `not input.x` and
`not input.x == 1` mean the same in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engine.policy import schema
from engine.policy.builtins import ARITY, PARTIAL
from engine.policy.findings import Finding
from engine.policy.reads import Program
from engine.policy.syntax import Node, ParsedModule, kind, nodes, parts_of, prefix_of

_LITERALS = frozenset({"String", "RawString", "Number", "Bool", "True", "False", "Null"})
_COMPREHENSIONS = frozenset({"ArrayCompr", "SetCompr", "ObjectCompr"})
_OPERATORS = frozenset({"BoolExpr", "ArithExpr", "BinExpr", "AssignExpr"})
_BRACES = frozenset({"Set", "Object", "SetCompr", "ObjectCompr"})


class Totality:
    """Judges the operands of `not` in one module."""

    def __init__(self, program: Program, module: ParsedModule, data: dict[str, Any]) -> None:
        self._program = program
        self._module = module
        self._data = data
        self._reader = program.reader(module)

    def findings(self, node: Any) -> Iterator[Finding]:
        """Yield a finding for each negated expression below a node that the two evaluators may read differently."""
        for negated in nodes(node, "NotExpr"):
            expression = negated["expr"]
            found = kind(expression)
            if found is not None and found[0] in _BRACES:
                yield self._reader.place(expression).finding(
                    "`not` before braces is read as a set, not as a block",
                    "put the block into a rule of its own and negate that rule",
                )
                continue
            for operand in self._operands(expression):
                place = self._reader.place(operand)
                yield place.finding(
                    "an operand of `not` may be undefined, and the two evaluators then disagree",
                    "bind it on a line before, give the rule a `default`, or use object.get",
                )
                break

    def _operands(self, expression: Node) -> Iterator[Node]:
        """Yield the operands of a negated expression that may be undefined."""
        found = kind(expression)
        if found is None:
            return
        name, fields = found
        if name in ("Var", "RefDot", "RefBrack"):
            yield from self._indexes(expression)
        elif name == "BoolExpr" and fields["op"] == "Eq" and self._plain(fields["lhs"]):
            yield from self._indexes(fields["lhs"])
            yield from self._partial([fields["rhs"]])
        elif name == "BoolExpr" and fields["op"] == "Eq" and self._plain(fields["rhs"]):
            yield from self._indexes(fields["rhs"])
            yield from self._partial([fields["lhs"]])
        elif name == "Call":
            yield from self._partial(fields["params"])
        elif name in _OPERATORS:
            yield from self._partial([fields["lhs"], fields["rhs"]])
        elif name == "Membership":
            yield from self._partial([fields["value"], fields["collection"]])
        elif not self.total(expression):
            yield expression

    def _plain(self, node: Node) -> bool:
        found = kind(node)
        return found is not None and found[0] in ("RefDot", "RefBrack") and not self.total(node)

    def _indexes(self, reference: Node) -> Iterator[Node]:
        base, parts = parts_of(reference)
        found = kind(base)
        if found is not None and found[0] != "Var" and not self.total(base):
            yield base
        yield from self._partial([part for part in parts if not isinstance(part, str)])

    def _partial(self, operands: list[Node]) -> Iterator[Node]:
        for operand in operands:
            if not self.total(operand):
                yield operand

    def total(self, node: Node) -> bool:
        """Return whether a term is defined for every well-typed input."""
        found = kind(node)
        if found is None:
            return False
        name, fields = found
        if name in _LITERALS or name in _COMPREHENSIONS:
            return True
        if name in ("Set", "Array"):
            return all(self.total(item) for item in fields["items"])
        if name == "Object":
            return all(self.total(item) for entry in fields["fields"] for item in entry[1:])
        if name in ("Var", "RefDot", "RefBrack"):
            return self._reference_total(node)
        if name == "Call":
            return self._call_total(node, fields)
        if name == "UnaryExpr":
            return self.total(fields["expr"])
        if name == "ArithExpr":
            # Division and remainder by zero are undefined.
            return fields["op"] in ("Add", "Sub", "Mul") and self.total(fields["lhs"]) and self.total(fields["rhs"])
        if name in ("BinExpr", "BoolExpr"):
            return self.total(fields["lhs"]) and self.total(fields["rhs"])
        return False

    def _reference_total(self, node: Node) -> bool:
        base, parts = parts_of(node)
        found = kind(base)
        if found is None or found[0] != "Var":
            return False
        prefix = prefix_of(parts)
        path = self._program.resolve(self._module, found[1]["value"], prefix)
        if path is None:
            # A local: bound by a statement before, or the module does not compile. Its fields may be missing.
            return not parts
        if len(prefix) != len(parts):
            return False
        if path[0] == "input":
            entry = schema.lookup(path[1:])
            whole = 1 if isinstance(schema.SCHEMA.get(path[1] if len(path) > 1 else ""), schema.Field) else 2
            return entry is not None and len(path) - 1 <= whole
        return self._data_total(path[1:])

    def _data_total(self, path: tuple[str, ...]) -> bool:
        definitions = self._program.at(path)
        if definitions:
            forms = {definition.form for definition in definitions}
            if forms & {"set", "object", "default"}:
                return True
            return any(
                definition.form == "value"
                and not definition.bodies
                and definition.value is not None
                and self._program.module(definition) is self._module
                and self.total(definition.value)
                for definition in definitions
            )
        if self._program.reached(path):
            # A whole package, or a field of a rule's value: only the first is always there.
            return not any(len(definition.path) < len(path) for definition in self._program.reached(path))
        value: Any = self._data
        for part in path:
            if not isinstance(value, dict) or part not in value:
                return False
            value = value[part]
        return True

    def _call_total(self, node: Node, fields: Node) -> bool:
        base, parts = parts_of(fields["fcn"])
        found = kind(base)
        if found is None or found[0] != "Var" or not all(self.total(item) for item in fields["params"]):
            return False
        name = ".".join([found[1]["value"], *prefix_of(parts)])
        function = self._program.function(self._module, name)
        if function is not None:
            return any(definition.form == "default" for definition in self._program.at(function))
        return name in ARITY and name not in PARTIAL
