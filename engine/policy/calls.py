"""The lint of calls: functions that one of the two evaluators has not, or that do not mean the same in both."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from engine.policy import builtins, schema
from engine.policy.findings import Finding
from engine.policy.reads import Program
from engine.policy.syntax import Call, ParsedModule, kind


def call_findings(call: Call, program: Program, module: ParsedModule) -> Iterator[Finding]:
    """Yield what is wrong with a call of a function that the policy does not define itself."""
    name, arguments, place = call.name, call.arguments, call.place
    if name in builtins.VOLATILE:
        yield place.finding(
            f"{name} is volatile: no verdict decided from it could be kept",
            "use the fact `clock`, or give the value as data",
        )
    elif name in builtins.DIFFERING:
        yield place.finding(f"{name} does not mean the same in both evaluators", builtins.DIFFERING[name])
    elif name not in builtins.ARITY:
        near = difflib.get_close_matches(name, builtins.ARITY, 1)
        yield place.finding(
            f"no function named {name} that both evaluators have",
            f"did you mean {near[0]}?" if near else "define it, or use another built-in function",
        )
    elif name == "walk" and len(arguments) == 1:
        yield place.finding(
            "walk with one argument is empty in the embedded evaluator", "write walk(value, [path, leaf])"
        )
    elif len(arguments) not in (builtins.ARITY[name], builtins.ARITY[name] + 1):
        yield place.finding(f"{name} takes {builtins.ARITY[name]} arguments, not {len(arguments)}", "mend the call")
    elif name in builtins.ASCII_ONLY and not _ascii(arguments[0], program, module):
        yield place.finding(
            f"{name} differs between the evaluators for letters beyond ASCII",
            "compare as it stands; names and addresses are lower-case already",
        )
    elif name == "sprintf":
        text = kind(arguments[0])
        if text is None or text[0] not in ("String", "RawString"):
            yield place.finding("sprintf with a format that is no literal", "write the format into the call")
        elif any(mark in text[1]["value"] for mark in ("%f", "%e", "%g", "%.", "%F", "%E", "%G")):
            yield place.finding("sprintf prints floats differently in the two evaluators", "use %v or %d")
    elif name == "glob.match":
        pattern = kind(arguments[0])
        if pattern is None or pattern[0] not in ("String", "RawString"):
            yield place.finding(
                "a glob that is no literal cannot be checked for forms that the evaluators read differently",
                "keep lists of suffixes or prefixes instead",
            )
        elif "{," in pattern[1]["value"] or ",}" in pattern[1]["value"] or ",," in pattern[1]["value"]:
            yield place.finding(
                "an empty alternative in a glob is read differently by the two evaluators", "write two globs"
            )


def _ascii(argument: Any, program: Program, module: ParsedModule) -> bool:
    reads = program.uses_of(module, argument).inputs
    found = kind(argument)
    if found is None or found[0] not in ("RefDot", "RefBrack") or len(reads) != 1:
        return found is not None and found[0] == "String" and str(found[1]["value"]).isascii()
    entry = schema.lookup(reads[0].path)
    return isinstance(entry, schema.Field) and entry.ascii
