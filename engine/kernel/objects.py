"""Compiled kernel programs as values: what is needed to load them without a compiler.

A unit is what one C file became. Its programs refer to maps by name: an instruction that loads a map's address names
the map here, and gets the number of the descriptor that stands for it when it is loaded. Pinned maps are shared by all
units under their names; the others belong to their unit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engine.errors import KernelError

INSTRUCTION = 8
"""Bytes: opcode, registers (source in the high half), 16-bit offset, 32-bit immediate."""
_LOAD_64, _CALL = 0x18, 0x85
_MAP_DESCRIPTOR = 1
"""BPF_PSEUDO_MAP_FD as the source register of _LOAD_64; BPF_PSEUDO_CALL, the same number, as that of _CALL."""


@dataclass(frozen=True)
class MapLayout:
    """What BPF_MAP_CREATE is asked for. `pinned`: shared between units, runs and the engine under its name."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    pinned: bool


@dataclass(frozen=True)
class Code:
    """One function. `maps`: (index of the instruction, name of the map whose address it loads)."""

    name: str
    instructions: bytes
    maps: tuple[tuple[int, str], ...]

    @classmethod
    def of(cls, name: str, instructions: bytes, descriptors: Mapping[int, str]) -> Code:
        """Take the map descriptors of the compiling process out of the instructions.

        KernelError for what cannot be loaded from instructions alone: a map that nobody declared, a call of another
        function, the address of a global variable.
        """
        code, maps = bytearray(instructions), []
        for index in _walk(instructions):
            at = index * INSTRUCTION
            opcode, source = code[at], code[at + 1] >> 4
            if opcode == _CALL and source:
                raise KernelError(f"{name} calls another function", hint="Mark it always_inline.")
            if opcode != _LOAD_64 or not source:
                continue
            descriptor = int.from_bytes(code[at + 4 : at + 8], "little")
            if source != _MAP_DESCRIPTOR or descriptor not in descriptors:
                raise KernelError(f"{name} refers to something that is no map", hint="Global variables cannot be used.")
            maps.append((index, descriptors[descriptor]))
            code[at + 4 : at + 8] = bytes(4)
        return cls(name, bytes(code), tuple(maps))

    def bound(self, descriptors: Mapping[str, int]) -> bytes:
        """Return the instructions with each map's descriptor in its place."""
        code = bytearray(self.instructions)
        for index, name in self.maps:
            at = index * INSTRUCTION + 4
            code[at : at + 4] = descriptors[name].to_bytes(4, "little")
        return bytes(code)


def _walk(instructions: bytes) -> Iterator[int]:
    """Yield the index of each instruction; one that loads 64 bits takes two places."""
    index, end = 0, len(instructions) // INSTRUCTION
    while index < end:
        yield index
        index += 2 if instructions[index * INSTRUCTION] == _LOAD_64 else 1


@dataclass(frozen=True)
class Unit:
    source: str
    licence: str
    maps: tuple[MapLayout, ...]
    programs: tuple[Code, ...]


def shared_maps(units: tuple[Unit, ...]) -> dict[str, MapLayout]:
    """Return the pinned maps of all units by name. KernelError when two units declare one differently."""
    found: dict[str, MapLayout] = {}
    for unit in units:
        for layout in unit.maps:
            if layout.pinned and found.setdefault(layout.name, layout) != layout:
                raise KernelError(
                    f"The map {layout.name} is declared differently in {unit.source} than in another file",
                    hint="Give both declarations the same type, key, value, size and flags.",
                )
    return found


def to_json(units: tuple[Unit, ...]) -> bytes:
    """Print units; `from_json` reads them back."""
    document = [asdict(unit) for unit in units]
    for unit in document:
        for code in unit["programs"]:
            code["instructions"] = code["instructions"].hex()
    return json.dumps(document, separators=(",", ":")).encode()


def from_json(text: bytes) -> tuple[Unit, ...]:
    """Read units. ValueError when the text is not what `to_json` prints."""
    try:
        return tuple(_unit(given) for given in json.loads(text))
    except (TypeError, KeyError) as error:
        raise ValueError(f"no compiled programs: {error}") from error


def _unit(given: dict[str, Any]) -> Unit:
    return Unit(
        given["source"], given["licence"], tuple(MapLayout(**layout) for layout in given["maps"]),
        tuple(
            Code(one["name"], bytes.fromhex(one["instructions"]), tuple((index, name) for index, name in one["maps"]))
            for one in given["programs"]
        ),
    )  # fmt: skip
