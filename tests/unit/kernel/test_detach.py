"""What taking the gate down says of interfaces that go while it looks at them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from engine.errors import InterfaceError
from engine.kernel import detach
from engine.kernel.links import Link
from engine.kernel.order import Detached
from engine.kernel.pins import Pins

GATE, LATE = Link(3, "gate0", 1), Link(4, "late0", 1)


@pytest.mark.parametrize(
    ("afterwards", "problems"),
    [([GATE], []), ([GATE, LATE], ["interface late0: no such device"])],
    ids=["it is gone", "it is there"],
)
def test_only_an_interface_that_is_still_there_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, afterwards: list[Link], problems: list[str]
) -> None:
    looks = iter([[GATE, LATE], afterwards])

    def unguard(_ip: object, index: int, _ours: frozenset[int]) -> bool:
        if index == LATE.index:
            raise InterfaceError("no such device")
        return True

    monkeypatch.setattr(detach, "netlink", lambda _doing: contextlib.nullcontext(object()))
    monkeypatch.setattr(detach, "links", lambda _ip: next(looks))
    monkeypatch.setattr(detach.filters, "unguard", unguard)
    monkeypatch.setattr(detach.attach, "detach_xdp", lambda _index, _ours: False)
    monkeypatch.setattr(detach.attach, "remove_hold_device", lambda _pins: True)
    done = Detached("test")
    detach._detach_links(Pins.of(tmp_path), frozenset(), done)
    assert done.problems == problems
    assert done.interfaces == [str(GATE.index)]
