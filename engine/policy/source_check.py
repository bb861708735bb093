"""The check of what a policy says of sources: lists and limits that are fixed when the policy is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from engine.policy.findings import Finding
from engine.policy.interpreter import Interpreter
from engine.policy.reads import Program
from engine.policy.rule import ROOT_PACKAGE
from engine.policy.sources import LIMITS, PREFIX_SETS, WORDS, FloodLimit, Prefixes, ScanLimit, SourceRules, packed
from engine.policy.syntax import Place

_MEND = {
    "source_deny": "write `source_deny contains prefix if some prefix in data...`",
    "source_allow": "write `source_allow contains prefix if some prefix in data...`",
    "scan_limit": 'write scan_limit := {"ports": 100, "seconds": 10, "block_seconds": 600}',
    "flood_limit": 'write flood_limit := {"syns": 1000, "seconds": 1, "block_seconds": 60}',
}
_BOUNDS = {
    # Half the bits that the kernel has for the ports of a source: more distinct ones than that are not told apart.
    "ports": (2, 512),
    "syns": (2, 10_000_000),
    "seconds": (1, 3600),
    "block_seconds": (1, 604_800),
}
Limit = TypeVar("Limit", ScanLimit, FloodLimit)


def source_findings(program: Program) -> Iterator[Finding]:
    """Yield what is wrong with the form of the definitions."""
    for word in WORDS:
        definitions = program.at((*ROOT_PACKAGE, word))
        wanted = "set" if word in PREFIX_SETS else "value"
        for number, definition in enumerate(definitions):
            if definition.form != wanted:
                what = "set of prefixes" if wanted == "set" else "plain object"
                yield definition.place.finding(f"{word} is no {what}", _MEND[word])
            elif wanted == "value" and number:
                yield definition.place.finding(f"a second {word}", "remove one of them")
        for read in program.closure(definitions).inputs:
            yield read.place.finding(
                f"{word} reads input: it is fixed when the policy is loaded, before any packet is seen",
                "take it from data",
            )


def source_rules(interpreter: Interpreter, program: Program, findings: list[Finding]) -> SourceRules:
    """Evaluate what a policy says of sources, without input. What it should not say is added to the findings."""
    said: dict[str, Any] = {}
    for word in WORDS:
        definitions = program.at((*ROOT_PACKAGE, word))
        if definitions:
            value = interpreter.value(f"data.sallyport.{word}")
            place = definitions[0].place
            said[word] = (_limit if word in LIMITS else _prefixes)(word, value, place, findings)
    return SourceRules(
        said.get("source_deny", Prefixes()), said.get("source_allow", Prefixes()), said.get("scan_limit"),
        said.get("flood_limit"),
    )  # fmt: skip


def _prefixes(word: str, value: Any, place: Place, findings: list[Finding]) -> Prefixes:
    try:
        return Prefixes.of(value)
    except (ValueError, AttributeError):  # of a million the wrong ones are looked for only if there are any
        mend = "write an address, or a prefix without host bits, such as 192.0.2.0/24"
        wrong = [item for item in value if not _is_prefix(item)]
        findings += [place.finding(f"{word} has no prefix: {item!r}", mend) for item in wrong]
    return Prefixes()


def _is_prefix(item: object) -> bool:
    try:
        return isinstance(item, str) and bool(packed(item))
    except ValueError:
        return False


def _limit(word: str, value: Any, place: Place, findings: list[Finding]) -> ScanLimit | FloodLimit | None:
    kind = ScanLimit if word == "scan_limit" else FloodLimit
    if value is msgspec.UNSET:
        findings.append(place.finding(f"{word} has no value", _MEND[word]))
        return None
    if not isinstance(value, dict) or set(value) != set(kind.__struct_fields__):
        keys = ", ".join(kind.__struct_fields__)
        findings.append(place.finding(f"{word} is no object of {keys}: {value!r}", _MEND[word]))
        return None
    for key, number in value.items():
        least, most = _BOUNDS[key]
        if type(number) is not int or not least <= number <= most:
            mend = f"write a whole number from {least} to {most}"
            findings.append(place.finding(f"{key} of {word} is out of bounds: {number!r}", mend))
            return None
    return kind(**value)
