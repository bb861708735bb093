"""Maps and programs brought into the kernel: a map that is pinned already is taken over, the others are created."""

from __future__ import annotations

import os

from engine.errors import KernelError
from engine.kernel import bpf, libbpf
from engine.kernel.objects import MapLayout, Unit, shared_maps
from engine.kernel.pins import Pins
from engine.kernel.programs import PROGRAMS, SOCK_OPS

_ARRAYS = frozenset({2, 6})
"""BPF_MAP_TYPE_ARRAY and _PERCPU_ARRAY: their number of entries is what the programs count on, not a bound."""
_SAID_BYTES = 2000


def difference(wanted: MapLayout, info: libbpf.MapInfo) -> str:
    """Say how a map that stands differs from what the programs were compiled for; empty where it serves.

    How many entries a table may have is the configuration's, and takes effect when the table is created; of an array it
    is layout.
    """
    pairs = {
        "type": (int(info.type), wanted.type),
        "key": (int(info.key_size), wanted.key_size),
        "value": (int(info.value_size), wanted.value_size),
        "flags": (int(info.map_flags), wanted.flags),
    }
    if wanted.type in _ARRAYS:
        pairs["entries"] = (int(info.max_entries), wanted.max_entries)
    return ", ".join(
        f"{what} {stands} and not {needed}" for what, (stands, needed) in pairs.items() if stands != needed
    )


def open_maps(units: tuple[Unit, ...], pins: Pins) -> dict[str, int]:
    """Open or create every pinned map; return name -> fd.

    Raises KernelError, before anything is created, when one that stands has another layout.
    """
    layouts = shared_maps(units)
    opened: dict[str, int] = {}
    for name, layout in layouts.items():
        pin = pins.maps / name
        if not pin.exists():
            continue
        opened[name] = libbpf.obj_get(pin)
        differs = difference(layout, libbpf.map_info(opened[name]))
        if differs:
            raise KernelError(
                f"The standing map {name} has another layout than these programs need: {differs}",
                hint="Take the gate down with `sallyport panic`, then start again.",
            )
    for name, layout in layouts.items():
        if name not in opened:
            opened[name] = _create(layout)
            libbpf.obj_pin(opened[name], pins.maps / name)
    return opened


def _create(layout: MapLayout) -> int:
    try:
        return bpf.create_map(layout)
    except OSError as error:
        raise KernelError(
            f"The kernel map {layout.name} with {layout.max_entries} entries cannot be created: {error.strerror}",
            hint="Is there memory for it? The bounds stand in the configuration's [maps].",
        ) from error


def load_programs(units: tuple[Unit, ...], shared: dict[str, int]) -> dict[str, int]:
    """Load every program; return name -> fd. Raises KernelError with what the verifier said."""
    table = {program.name: program for program in PROGRAMS}
    loaded: dict[str, int] = {}
    for unit in units:
        used = {name for code in unit.programs for _, name in code.maps}
        own = {one.name: _create(one) for one in unit.maps if not one.pinned and one.name in used}
        for code in unit.programs:
            program = table[code.name]
            try:
                # Programs of sock_ops have an attach type for their link, but load without one.
                expected = 0 if program.type == SOCK_OPS else program.attach_type
                loaded[code.name] = bpf.load_program(code, program.type, expected, unit.licence, {**shared, **own})
            except bpf.VerifierError as error:
                raise KernelError(
                    f"The kernel program {unit.source} did not load: {error}",
                    hint=f"What the verifier said:\n{error.log.strip()[-_SAID_BYTES:]}",
                ) from error
        for fd in own.values():
            os.close(fd)
    return loaded
