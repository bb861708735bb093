"""Warm-up: a candidate policy is tried on generated inputs before it comes into force.

Inputs are typed by the schema and fed with the constants of the policy and of its data, so that most conditions are
met and missed at least once (61 statements of a 200-line policy: 60 met by 300 inputs). What the interpreter only
notices when it evaluates (unsafe variables, conflicts, a built-in that refuses its arguments) comes out here and
not at the first packet. Deterministic: the same policy gets the same inputs.
"""

from __future__ import annotations

import ipaddress
import itertools
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from engine.model.net import canonical, locality
from engine.policy.findings import Finding
from engine.policy.reads import Program
from engine.policy.rule import Rule
from engine.policy.schema import SCHEMA, Field
from engine.policy.syntax import nodes, words_to_finding

INPUTS = 160
"""For each rule; a warm-up of five rules then takes about a third of a second."""
_CONSTANTS = 48
"""Of each rule's data: a list of 500,000 names is as good as its first entries here."""
_ADDRESSES = ("192.0.2.1", "10.0.0.1", "127.0.0.1", "2001:db8::1", "::1", "169.254.1.1", "ff02::1")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,240}[a-z0-9])?")
_TEXTS = ("", "x", "/usr/bin/x")


def generate(program: Program, rule: Rule, data: dict[str, Any], count: int = INPUTS) -> list[dict[str, Any]]:
    """Return well-typed inputs for a rule: plain ones, each constant once, then mixtures."""
    texts, numbers = _constants(program, rule, data)
    # Seeded by name: the inputs of a rule do not move when another rule changes.
    chance = random.Random(rule.name)  # noqa: S311 - no secret
    facts = sorted(rule.scope)
    pools = {fact: _pool(fact, texts, numbers) for fact in facts}
    inputs = [{fact: pools[fact][0] for fact in facts}]
    inputs += [
        {other: (value if other == fact else chance.choice(pools[other])) for other in facts}
        for fact in facts
        for value in pools[fact][1:]
    ]
    chance.shuffle(inputs)
    while len(inputs) < count:
        inputs.append({fact: chance.choice(pools[fact]) for fact in facts})
    return inputs[:count]


def _constants(program: Program, rule: Rule, data: dict[str, Any]) -> tuple[list[str], list[int]]:
    texts: dict[str, None] = {}
    numbers: dict[int, None] = {}
    for module in program.modules:
        for definition in module.definitions:
            if definition.name in ("scope", "target_scope"):
                continue
            body = [list(definition.bodies), definition.value]
            for text in itertools.chain(nodes(body, "String"), nodes(body, "RawString")):
                texts[text["value"]] = None
            for number in nodes(body, "Number"):
                if isinstance(number["value"], int):
                    numbers[number["value"]] = None
    for path in sorted(rule.data):
        value: Any = data
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        for leaf in itertools.islice(_leaves(value), _CONSTANTS):
            if isinstance(leaf, str):
                texts[leaf] = None
            elif isinstance(leaf, int) and not isinstance(leaf, bool):
                numbers[leaf] = None
    return list(texts)[: 2 * _CONSTANTS], list(numbers)[:_CONSTANTS]


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def _pool(fact: str, texts: Sequence[str], numbers: Sequence[int]) -> list[Any]:
    entry = SCHEMA[fact]
    if isinstance(entry, Field):
        return _values(entry, texts, numbers)
    if fact == "dest":
        return _destinations(texts, numbers)
    if fact == "name":
        return _names(texts)
    columns = {name: _values(field, texts, numbers) for name, field in entry.items()}
    longest = max(len(column) for column in columns.values())
    # Columns of unequal length drift against each other, so that not always the same values meet.
    return [
        {
            name: column[(row + shift * (row // len(column))) % len(column)]
            for shift, (name, column) in enumerate(columns.items())
        }
        for row in range(longest)
    ]


def _values(field: Field, texts: Sequence[str], numbers: Sequence[int]) -> list[Any]:
    if field.choices:
        return list(field.choices)
    if field.kind == "boolean":
        return [False, True]
    if field.kind == "integer":
        near = {number + step for number in numbers for step in (-1, 0, 1)}
        inside = sorted(number for number in near if field.minimum <= number <= field.maximum)
        return [max(field.minimum, 0), *inside, field.maximum]
    if field.kind == "strings":
        return [[], *([text] for text in texts), list(texts[:3])]
    if field.kind == "map":
        return [{}, {text: text for text in texts[:8]}]
    if field.ascii:
        return ["", *(text for text in texts if text.isascii())]
    return [*_TEXTS, *texts, *(f"{text}x" for text in texts[:8])]


def _destinations(texts: Sequence[str], numbers: Sequence[int]) -> list[dict[str, Any]]:
    addresses = list(_ADDRESSES)
    for text in texts:
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            continue
        addresses.append(str(canonical(network[0])))
        addresses.append(str(canonical(network[-1])))
    ports = [0, 22, 53, 80, 443, 65535, *(number for number in numbers if 0 < number < 65536)]
    transports = ("tcp", "udp", "icmp", "other")
    return [
        {
            "address": addresses[row % len(addresses)],
            "port": ports[(row * 5 + row // len(ports)) % len(ports)],
            "transport": transports[row % 7 % 4],
            "locality": locality(ipaddress.ip_address(addresses[row % len(addresses)])),
        }
        for row in range(max(2 * len(addresses), 2 * len(ports)))
    ]


def _names(texts: Sequence[str]) -> list[dict[str, Any]]:
    hosts = [text for text in texts if _NAME.fullmatch(text)]
    hosts += [f"www.{host}" for host in hosts] + ["example.org", "localhost"]
    found = [{"value": host, "state": "complete", "ech": row % 5 == 4} for row, host in enumerate(hosts)]
    state = SCHEMA["name"]
    choices = state["state"].choices if isinstance(state, dict) else ()
    # The name is empty unless the state is complete: no other input can occur.
    return found + [{"value": "", "state": word, "ech": False} for word in choices if word != "complete"]


def failure_findings(failures: Sequence[tuple[str, bytes, str]], rules: Sequence[Rule]) -> list[Finding]:
    """Turn the rules that raised into findings with the input shown; one error of a module is named once."""
    files = {rule.name: rule.file for rule in rules}
    found: dict[tuple[str, int, int, str], Finding] = {}
    for name, document, words in failures:
        plain = words_to_finding(words, files.get(name, "."), "")
        shown = msgspec.json.encode(msgspec.json.decode(document), order="sorted").decode()
        finding = Finding(
            plain.file, plain.line, plain.col, plain.message, f"rule {name} must answer every input, such as {shown}"
        )
        found.setdefault((plain.file, plain.line, plain.col, plain.message), finding)
    return list(found.values())
