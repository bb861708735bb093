"""What the engine asks the checker, and what it is told: apart, so that the engine does not load the parser."""

from __future__ import annotations

import ipaddress

import msgspec

from engine.model.decision import Verdict
from engine.policy.bundle import Bundle
from engine.policy.findings import Finding
from engine.policy.regotest import RegoTest
from engine.policy.rule import Rule

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Examine(msgspec.Struct, tag="examine", array_like=True):
    """A candidate: modules and tests as (file, text), data as JSON, and which file gave which data path.

    `warm_up`: evaluate it too, if the static check finds nothing.
    """

    modules: list[tuple[str, str]]
    tests: list[tuple[str, str]]
    data: bytes
    data_files: list[tuple[list[str], str]]
    warm_up: bool = True


class Report(msgspec.Struct, tag="report", array_like=True):
    """What came of it. With an error among `findings` the rest is what could be made out."""

    findings: list[Finding]
    rules: list[Rule]
    default: Verdict | None
    source_deny: list[str]
    tests: list[RegoTest]


def question(bundle: Bundle, *, warm_up: bool) -> Examine:
    """Return the request for a bundle."""
    return Examine(
        [(module.file, module.text) for module in bundle.modules],
        [(module.file, module.text) for module in bundle.tests],
        msgspec.json.encode(bundle.data),
        [(list(path), file) for path, file in bundle.data_files.items()],
        warm_up,
    )
