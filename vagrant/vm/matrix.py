"""The table of kernels in docs/kernels.md: what the machines found out, kept as figures and rendered from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vagrant.vm.kernels import version_number
from vagrant.vm.trial import Outcome

Row = dict[str, Any]
"""What is known of one kernel: `release` and, by step, what the step found out."""

_HEAD = """\
# Kernels

Written by `make vm-matrix` (figures: docs/kernels.json); do not edit. Each kernel is Debian's cloud flavour, booted in
a throw-away machine on QEMU; see vagrant/README.md.

| Linux | build | gate and observers load | tests/kernel | lab | bypass suite |
|---|---|---|---|---|---|
"""

_PROGRAMS = """
## What the programs cost the verifier

Instructions that the verifier went through, and in brackets those of the program as the kernel rewrote it. The limit is
1,000,000. Kernels before 5.16 do not tell the first.

"""

_FEATURES = """
## What the engine reports at its start

As `sallyport status` shows it, with the whole machine's control group, one veth interface and the observing mode.

"""


def read(file: Path) -> dict[str, Row]:
    """The figures by line of kernels ("6.1"); empty when there are none yet."""
    return dict(json.loads(file.read_text())) if file.exists() else {}


def write(file: Path, rows: Mapping[str, Row]) -> None:
    file.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")


def row(before: Row | None, outcome: Outcome) -> Row:
    """A kernel's figures after a trial. Of another build nothing is kept: a row is about one kernel."""
    kept = before if before and before["release"] == outcome.release else {}
    return {**kept, **outcome.findings, "release": outcome.release}


def render(rows: Mapping[str, Row]) -> str:
    """The document's text."""
    lines = sorted(rows, key=version_number)
    text = _HEAD + "".join(_overview(line, rows[line]) for line in lines)
    surveyed = [line for line in lines if "survey" in rows[line]]
    if surveyed:
        text += _PROGRAMS + _table("program", surveyed, rows, "programs", _size)
        text += _FEATURES + _table("feature", surveyed, rows, "features", _state)
        text += _reasons(surveyed, rows)
    failures = [
        f"- {line}, {step}: {name}\n"
        for line in lines
        for step in ("kernel", "lab", "bypass")
        for name in rows[line].get(step, {}).get("failed", [])
    ]
    if failures:
        text += "\n## What failed, and what is open in the bypass suite\n\n" + "".join(failures)
    return text


def _overview(line: str, one: Row) -> str:
    loads = "yes" if one.get("survey", {}).get("programs") else "not tried"
    return (
        f"| {line} | {one['release']} | {loads} | {_count(one.get('kernel'))} | {_count(one.get('lab'))} "
        f"| {_bypass(one.get('bypass'))} |\n"
    )


def _count(step: Mapping[str, Any] | None) -> str:
    return f"{step['passed']} of {step['tests']}" if step else "not tried"


def _bypass(step: Mapping[str, Any] | None) -> str:
    """How many attempts came to which end."""
    if not step:
        return "not tried"
    return ", ".join(f"{count} {end}" for end, count in step["counts"].items() if count)


def _table(head: str, lines: list[str], rows: Mapping[str, Row], kind: str, cell: Any) -> str:
    names: list[str] = []
    for line in lines:
        names += [name for name in rows[line]["survey"][kind] if name not in names]
    text = f"| {head} | " + " | ".join(lines) + " |\n|---" * 1 + "|---" * len(lines) + "|\n"
    for name in names:
        cells = (cell(rows[line]["survey"][kind].get(name)) for line in lines)
        text += f"| {name} | " + " | ".join(cells) + " |\n"
    return text


def _size(program: Mapping[str, Any] | None) -> str:
    if program is None:
        return "absent"
    verified = f"{program['verified']:,} " if program["verified"] else ""
    return f"{verified}({program['instructions']:,})"


def _state(feature: Mapping[str, str] | None) -> str:
    return feature["state"] if feature else "absent"


def _reasons(lines: list[str], rows: Mapping[str, Row]) -> str:
    """Why a feature is not simply active, once for all kernels that say the same."""
    said: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        for name, feature in rows[line]["survey"]["features"].items():
            if feature["why"] and feature["state"] != "active":
                said.setdefault((name, feature["why"]), []).append(line)
    if not said:
        return ""
    return "\n" + "".join(f"- {name} ({', '.join(on)}): {why}\n" for (name, why), on in said.items())
