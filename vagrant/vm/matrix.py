"""The table of kernels in docs/kernels.md: what the machines found out, kept as figures and rendered from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
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

_BYPASS = """
## The bypass suite

What `sallyport selftest bypass` saw, for each attempt that some kernel does not block; all others are blocked on all.
docs/bypass.md has them all, and what the words mean.

"""

_TESTS = """
## Tests of tests/kernel, by file

Emulated, the whole folder takes hours, so it is tried by files.

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
    file.write_text(json.dumps(rows, indent=1) + "\n")


def row(before: Row | None, outcome: Outcome) -> Row:
    """A kernel's figures after a trial. Of another build nothing is kept: a row is about one kernel. Tests may be tried
    some files at a time, so those of a trial before stay."""
    kept = before if before and before["release"] == outcome.release else {}
    after = {**kept, **outcome.findings, "release": outcome.release}
    if "kernel" in kept and "kernel" in outcome.findings:
        now = outcome.findings["kernel"]
        after["kernel"] = {**now, "files": {**kept["kernel"]["files"], **now["files"]}}
    return after


def render(rows: Mapping[str, Row]) -> str:
    """The document's text."""
    lines = sorted(rows, key=version_number)
    text = _HEAD + "".join(_overview(line, rows[line]) for line in lines)
    if tried := [line for line in lines if "bypass" in rows[line]]:
        text += _BYPASS + _ends(tried, rows)
    if tested := [line for line in lines if "kernel" in rows[line]]:
        text += _TESTS + _table("file", tested, {line: rows[line]["kernel"]["files"] for line in tested}, _count)
    if surveyed := [line for line in lines if "survey" in rows[line]]:
        found = {line: rows[line]["survey"] for line in surveyed}
        text += _PROGRAMS + _table("program", surveyed, {line: found[line]["programs"] for line in surveyed}, _size)
        text += _FEATURES + _table("feature", surveyed, {line: found[line]["features"] for line in surveyed}, _state)
        text += _reasons({line: found[line]["features"] for line in surveyed}, _feature)
    failures = [
        f"- {line}, {step}: {name}\n"
        for line in lines
        for step in ("kernel", "lab", "bypass")
        for name in _failed(step, rows[line].get(step, {}))
    ]
    if failures:
        text += "\n## What failed\n\n" + "".join(failures)
    return text


def _overview(line: str, one: Row) -> str:
    loads = "yes" if one.get("survey", {}).get("programs") else "not tried"
    return (
        f"| {line} | {one['release']} | {loads} | {_files(one.get('kernel'))} | {_count(one.get('lab'))} "
        f"| {_bypass(one.get('bypass'))} |\n"
    )


def _count(step: Mapping[str, Any] | None) -> str:
    return f"{step['passed']} of {step['tests']}" if step else "not tried"


def _files(step: Mapping[str, Any] | None) -> str:
    """How many tests passed, and of how many of the folder's files they are."""
    if not step:
        return "not tried"
    files = step["files"].values()
    passed, tests = (sum(file[what] for file in files) for what in ("passed", "tests"))
    return f"{passed} of {tests} ({len(files)} of {step['there_are']} files)"


def _failed(step: str, found: Mapping[str, Any]) -> list[str]:
    if step == "kernel":
        return [f"{file}::{name}" for file, counts in found.get("files", {}).items() for name in counts["failed"]]
    return list(found.get("failed", []))


def _bypass(step: Mapping[str, Any] | None) -> str:
    """How many attempts came to which end."""
    if not step:
        return "not tried"
    return ", ".join(f"{count} {end}" for end, count in step["counts"].items() if count)


def _table(head: str, lines: list[str], cells: Mapping[str, Mapping[str, Any]], cell: Callable[[Any], str]) -> str:
    """One row for each name that a kernel has, one column for each kernel. `cells`: line -> name -> what was found."""
    names: list[str] = []
    for line in lines:
        names += [name for name in cells[line] if name not in names]
    text = f"| {head} | " + " | ".join(lines) + " |\n" + "|---" * (1 + len(lines)) + "|\n"
    for name in names:
        text += f"| {name} | " + " | ".join(cell(cells[line].get(name)) for line in lines) + " |\n"
    return text


def _ends(lines: list[str], rows: Mapping[str, Row]) -> str:
    """How the attempts ended that are not blocked everywhere, and why."""
    ends = {line: rows[line]["bypass"]["not_blocked"] for line in lines}
    return _table("attempt", lines, ends, lambda end: end["outcome"] if end else "blocked") + _reasons(
        ends, lambda end: end["why"]
    )


def _size(program: Mapping[str, Any] | None) -> str:
    if program is None:
        return "absent"
    verified = f"{program['verified']:,} " if program["verified"] else ""
    return f"{verified}({program['instructions']:,})"


def _state(feature: Mapping[str, str] | None) -> str:
    return feature["state"] if feature else "absent"


def _feature(feature: Mapping[str, str]) -> str:
    """Why a feature is not simply active."""
    return feature["why"] if feature["state"] != "active" else ""


def _reasons(cells: Mapping[str, Mapping[str, Any]], why: Callable[[Any], str]) -> str:
    """The reasons, each once for all kernels that give the same."""
    said: dict[tuple[str, str], list[str]] = {}
    for line, found in cells.items():
        for name, one in found.items():
            if reason := why(one):
                said.setdefault((name, reason), []).append(line)
    if not said:
        return ""
    return "\n" + "".join(f"- {name} ({', '.join(on)}): {reason}\n" for (name, reason), on in said.items())
