"""bpf/include/abi.h, as a C compiler lays it out, against its Python mirror in engine.abi."""

from __future__ import annotations

import enum
import re
import struct
import subprocess
from pathlib import Path

import pytest

from engine.abi import numbers, records
from engine.runtime import flows
from tests.support import simulator

from .conftest import INCLUDE, Build

HEADER = (INCLUDE / "abi.h").read_text()
GATE = (INCLUDE.parent / "gate.c").read_text()
ENUMS: dict[str, tuple[type[enum.IntEnum] | type[enum.IntFlag], str]] = {
    "mode": (numbers.Mode, "MODE_"),
    "verdict": (numbers.KernelVerdict, "VERDICT_"),
    "origin": (numbers.Origin, "ORIGIN_"),
    "destination_class": (numbers.DestinationClass, "DESTINATION_"),
    "present": (numbers.Present, "PRESENT_"),
    "posture": (numbers.PostureBit, "POSTURE_"),
    "shape": (numbers.Shape, "SHAPE_"),
    "interface_kind": (numbers.InterfaceKind, "INTERFACE_"),
    "hook": (numbers.Hook, "HOOK_"),
    "opened_by": (numbers.OpenedBy, "OPENED_"),
    "icmp_kind": (numbers.IcmpKind, "ICMP_"),
    "strategy_kind": (numbers.StrategyKind, "STRATEGY_"),
    "name_class": (numbers.NameClass, "NAME_CLASS_"),
    "stage": (numbers.StageNumber, "STAGE_"),
    "flow_flag": (numbers.FlowFlag, "FLOW_"),
    "counter": (numbers.Counter, "COUNT_"),
    "event_type": (numbers.EventType, "EVENT_"),
}
DEFINES = {
    "SALLYPORT_ABI": numbers.ABI,
    "NAME_KEY_BYTES": numbers.NAME_KEY_BYTES,
    "NAME_MAX_KERNEL": numbers.NAME_MAX_KERNEL,
    "SHAPES_MAX": numbers.SHAPES_MAX,
    "PLANS": numbers.PLANS,
    "DNS_BYTES": numbers.DNS_BYTES,
    "HELLO_KEPT": numbers.HELLO_KEPT,
    "COUNTERS": numbers.COUNTERS,
}
ALONE = ("HELLO_WINDOW", "HELLOS_MAX")
WITHOUT_MIRROR = {"event_header", "socket_state", "verdict_name_event"}
"""The head of every event, checked as a part of each; what only the programs read; a record and a tail, below."""
NAME_TAIL = struct.Struct(f"<{records.VERDICT_EVENT.size}xI{numbers.NAME_KEY_BYTES}s4x")


def blocks(kind: str) -> dict[str, str]:
    return dict(re.findall(rf"^{kind} (\w+) {{\n(.*?)^}};", HEADER, re.MULTILINE | re.DOTALL))


def enum_words(body: str) -> list[str]:
    return re.findall(r"^\s*([A-Z][A-Z0-9_]*) = ", body, re.MULTILINE)


@pytest.fixture(scope="module")
def said(build: Build, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the compiler says of every expression that the tests below compare."""
    asked = [f"sizeof(struct {name})" for name in blocks("struct")]
    for name in records.LAYOUTS:
        for field in records.offsets(name):
            asked += [f"offsetof(struct {name}, {field})", f"sizeof(((struct {name} *)0)->{field})"]
    asked += [f"offsetof(struct verdict_name_event, {field})" for field in ("verdict", "name_length", "name", "pad")]
    asked += [word for body in blocks("enum").values() for word in enum_words(body)] + [*DEFINES, *ALONE]
    lines = "".join(f'\tprintf("%s=%lld\\n", "{ask}", (long long)({ask}));\n' for ask in asked)
    source = tmp_path_factory.mktemp("layout") / "layout.c"
    source.write_text(
        '#include <linux/types.h>\n#include <stddef.h>\n#include <stdio.h>\n#include "abi.h"\n#include "tls_hello.h"\n'
        f"int main(void)\n{{\n{lines}\treturn 0;\n}}\n"
    )
    text = subprocess.run([Path(build(source))], capture_output=True, text=True, check=True).stdout
    return {ask: int(value) for ask, _, value in (line.rpartition("=") for line in text.splitlines())}


def test_every_struct_of_the_header_has_a_mirror() -> None:
    assert set(blocks("struct")) == set(records.LAYOUTS) | WITHOUT_MIRROR


@pytest.mark.parametrize("name", records.LAYOUTS)
def test_sizes_and_offsets_agree(name: str, said: dict[str, int]) -> None:
    mirrored = records.offsets(name)
    compiled = {
        field: (said[f"offsetof(struct {name}, {field})"], said[f"sizeof(((struct {name} *)0)->{field})"])
        for field in mirrored
    }
    assert mirrored == compiled
    assert said[f"sizeof(struct {name})"] == sum(size for _, size in mirrored.values()), "a hole the mirror lacks"


def test_the_mirror_names_every_field() -> None:
    for name, codes in records.LAYOUTS.items():
        fields = re.findall(r"^\s*(?:struct )?\w+ (\w+)(?:\[\w+\])?;", blocks("struct")[name], re.MULTILINE)
        mirrored = list(dict.fromkeys(field.partition(".")[0] for field, _ in codes))
        assert mirrored == fields, name


def test_every_struct_is_a_multiple_of_eight_bytes_or_a_trie_key(said: dict[str, int]) -> None:
    """Ring records and hash keys without a tail that the compiler would add on its own."""
    for name in blocks("struct"):
        size = said[f"sizeof(struct {name})"]
        assert size % 4 == 0, name
        if not name.endswith("_key") and name not in {"tuple", "plan"}:
            assert size % 8 == 0, name


def test_the_tail_of_a_named_verdict_is_where_python_reads_it(said: dict[str, int]) -> None:
    assert said["offsetof(struct verdict_name_event, verdict)"] == 0
    assert said["offsetof(struct verdict_name_event, name_length)"] == records.VERDICT_EVENT.size
    assert said["sizeof(struct verdict_name_event)"] == NAME_TAIL.size
    name = b"moc.elpmaxe\0"
    event = records.VerdictEvent.unpack_named(NAME_TAIL.pack(len(name) - 1, name))
    assert event.name == b"example.com"


def test_every_enumeration_of_the_header_has_a_mirror() -> None:
    assert set(blocks("enum")) == set(ENUMS)


@pytest.mark.parametrize("name", ENUMS)
def test_numbers_agree(name: str, said: dict[str, int]) -> None:
    mirror, prefix = ENUMS[name]
    compiled = {word.removeprefix(prefix): said[word] for word in enum_words(blocks("enum")[name])}
    compiled.pop("COUNTERS", None)
    assert compiled == {word: int(member) for word, member in mirror.__members__.items()}


@pytest.mark.parametrize("name", DEFINES)
def test_bounds_agree(name: str, said: dict[str, int]) -> None:
    assert said[name] == DEFINES[name]


def test_every_hello_that_the_gate_reads_can_be_kept_where_its_cookie_says(said: dict[str, int]) -> None:
    assert said["HELLO_WINDOW"] == numbers.HELLO_KEPT
    assert said["HELLOS_MAX"] == simulator.HELLOS
    assert simulator.HELLOS & (simulator.HELLOS - 1) == 0


def test_the_gate_and_the_engine_agree_on_what_comes_again() -> None:
    bounds = dict(re.findall(r"^#define (JUDGED_MOST|SEEN_LAST) \(?([\dU< ]+)\)?$", GATE, re.MULTILINE))
    assert {name: _value(bound) for name, bound in bounds.items()} == {
        "JUDGED_MOST": flows.JUDGED_MOST, "SEEN_LAST": flows._SEEN_LAST,
    }  # fmt: skip


def _value(bound: str) -> int:
    number, _, shift = bound.replace("U", "").partition("<<")
    return int(number) << int(shift or 0)


def test_counters_are_numbered_without_a_gap() -> None:
    assert sorted(numbers.Counter) == list(range(numbers.COUNTERS))
