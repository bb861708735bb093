"""bpf/include/source_abi.h, as a C compiler lays it out, against its Python mirror in engine.abi.source."""

from __future__ import annotations

import re
import struct
import subprocess
from enum import IntEnum
from pathlib import Path

import pytest

from engine.abi import source

from .conftest import INCLUDE, Build

HEADER = (INCLUDE / "source_abi.h").read_text()
ENUMS: dict[str, tuple[type[IntEnum], str]] = {
    "source_family": (source.Family, "SOURCE_"),
    "source_cause": (source.Cause, "SOURCE_"),
    "source_counter": (source.SourceCounter, "SOURCE_COUNT_"),
}
DEFINES = {
    "SOURCE_LENGTHS": source.LENGTHS,
    "SOURCE_FAMILIES": source.FAMILIES,
    "SOURCE_PORT_BITS": source.PORT_BITS,
    "SOURCE_COUNTERS": source.SOURCE_COUNTERS,
    "EVENT_SOURCE_BLOCKED": source.EVENT_BLOCKED,
}


def blocks(kind: str) -> dict[str, str]:
    return dict(re.findall(rf"^{kind} (\w+) {{\n(.*?)^}};", HEADER, re.MULTILINE | re.DOTALL))


def words(body: str) -> list[str]:
    return re.findall(r"^\s*([A-Z][A-Z0-9_]*) = ", body, re.MULTILINE)


def offsets(name: str) -> dict[str, tuple[int, int]]:
    """{field: (offset, size)} of the mirror."""
    at, found = 0, {}
    for field, code in source.LAYOUTS[name]:
        size = struct.calcsize("<" + code)
        found[field] = (at, size)
        at += size
    return found


@pytest.fixture(scope="module")
def said(build: Build, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    asked = [f"sizeof(struct {name})" for name in blocks("struct")]
    for name in source.LAYOUTS:
        for field in offsets(name):
            asked += [f"offsetof(struct {name}, {field})", f"sizeof(((struct {name} *)0)->{field})"]
    asked += [word for body in blocks("enum").values() for word in words(body)] + list(DEFINES)
    lines = "".join(f'\tprintf("%s=%lld\\n", "{ask}", (long long)({ask}));\n' for ask in asked)
    program = tmp_path_factory.mktemp("layout") / "source_layout.c"
    program.write_text(
        '#include <linux/types.h>\n#include <stddef.h>\n#include <stdio.h>\n#include "source_abi.h"\n'
        f"int main(void)\n{{\n{lines}\treturn 0;\n}}\n"
    )
    text = subprocess.run([Path(build(program))], capture_output=True, text=True, check=True).stdout
    return {ask: int(value) for ask, _, value in (line.rpartition("=") for line in text.splitlines())}


def test_every_struct_and_enumeration_has_a_mirror() -> None:
    assert set(blocks("struct")) == set(source.LAYOUTS)
    assert set(blocks("enum")) == {*ENUMS, "source_event_type"}


@pytest.mark.parametrize("name", source.LAYOUTS)
def test_sizes_and_offsets_agree(name: str, said: dict[str, int]) -> None:
    mirrored = offsets(name)
    assert mirrored == {
        field: (said[f"offsetof(struct {name}, {field})"], said[f"sizeof(((struct {name} *)0)->{field})"])
        for field in mirrored
    }
    assert said[f"sizeof(struct {name})"] == sum(size for _, size in mirrored.values()), "a hole the mirror lacks"
    assert said[f"sizeof(struct {name})"] % 8 == 0, "a tail that the compiler would add on its own"


@pytest.mark.parametrize("name", ENUMS)
def test_numbers_agree(name: str, said: dict[str, int]) -> None:
    mirror, prefix = ENUMS[name]
    compiled = {word.removeprefix(prefix): said[word] for word in words(blocks("enum")[name])}
    compiled.pop("ERS", None)
    compiled.pop("SOURCE_COUNTERS", None)
    assert compiled == {word: int(member) for word, member in mirror.__members__.items()}


@pytest.mark.parametrize("name", DEFINES)
def test_bounds_agree(name: str, said: dict[str, int]) -> None:
    assert said[name] == DEFINES[name]


def test_counters_are_numbered_without_a_gap() -> None:
    assert sorted(source.SourceCounter) == list(range(source.SOURCE_COUNTERS))
