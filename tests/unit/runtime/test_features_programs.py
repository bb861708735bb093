"""What the report at start says of where the kernel programs came from."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from engine.runtime import features
from engine.runtime.features import Feature, State


def reported(compiled: str, not_kept: str) -> Feature:
    """The line about the programs in a report that is otherwise of an empty host."""
    empty: dict[str, Any] = {"Path": Path("/"), "str": "", "bool": False, "int": 0}
    given = {
        name: empty.get(str(each.annotation), {})
        for name, each in inspect.signature(features.report).parameters.items()
    }
    found = features.report(**{**given, "compiled": compiled, "not_kept": not_kept})
    (line,) = [feature for feature in found if feature.name == "kernel programs"]
    return line


@pytest.mark.parametrize(
    ("compiled", "not_kept", "state", "says"),
    [
        ("", "", State.ACTIVE, "kept from an earlier start"),
        ("nothing is kept yet", "", State.ACTIVE, "compiled: nothing is kept yet"),
        ("the directory /x is open to others", "the directory /x is open to others", State.DEGRADED,
         "compiled, and at the next start again: the directory /x is open to others"),
    ],
)  # fmt: skip
def test_a_start_says_which_way_it_went(compiled: str, not_kept: str, state: State, says: str) -> None:
    line = reported(compiled, not_kept)
    assert (line.state, line.why) == (state, says)
