"""Which standing maps a program may take over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.kernel.install import difference
from engine.kernel.libbpf import MapInfo
from engine.kernel.objects import MapLayout

HASH, ARRAY = 1, 2
TABLE = MapLayout("table", HASH, 4, 8, 100, 1, pinned=True)


def standing(layout: MapLayout) -> MapInfo:
    return MapInfo(
        type=layout.type, key_size=layout.key_size, value_size=layout.value_size, max_entries=layout.max_entries,
        map_flags=layout.flags,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"type": ARRAY}, "type 2 and not 1"),
        ({"key_size": 8}, "key 8 and not 4"),
        ({"value_size": 24}, "value 24 and not 8"),
        ({"flags": 0}, "flags 0 and not 1"),
        ({"key_size": 8, "flags": 0}, "key 8 and not 4, flags 0 and not 1"),
    ],
)
def test_another_layout_is_named(changes: dict[str, int], says: str) -> None:
    assert difference(TABLE, standing(replace(TABLE, **changes))) == says  # type: ignore[arg-type]


def test_a_table_of_another_bound_serves() -> None:
    """The configuration's [maps] take effect after a full stop; until then the engine starts over what stands."""
    assert difference(TABLE, standing(replace(TABLE, max_entries=7))) == ""


def test_an_array_of_another_length_does_not() -> None:
    counters = replace(TABLE, type=ARRAY, max_entries=40)
    assert difference(counters, standing(replace(counters, max_entries=32))) == "entries 32 and not 40"
