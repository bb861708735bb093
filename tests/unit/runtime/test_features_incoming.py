"""What the report says of what comes in: judged, by what, and where not."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from engine.runtime import features
from engine.runtime.features import Feature, State


def reported(*, inbound: bool, lacking: dict[str, str]) -> Feature:
    """The line about what comes in, in a report that is otherwise of an empty host."""
    empty: dict[str, Any] = {"Path": Path("/"), "str": "", "bool": False, "int": 0}
    given = {
        name: empty.get(str(each.annotation), {})
        for name, each in inspect.signature(features.report).parameters.items()
    }
    found = features.report(**{**given, "inbound": inbound, "lacking": lacking})
    (line,) = [feature for feature in found if feature.name == "what comes in"]
    return line


@pytest.mark.parametrize(
    ("inbound", "lacking", "state", "says"),
    [
        (False, {}, State.ACTIVE, "judged by source alone: the policy states no inbound_verdict"),
        (True, {}, State.ACTIVE, "judged by the policy's rules"),
        (True, {"eth1": "its place is taken"}, State.DEGRADED,
         "not judged by the policy's rules on eth1: its place is taken"),
    ],
)  # fmt: skip
def test_what_comes_in_is_called_judged_only_where_it_is(
    lacking: dict[str, str], state: State, says: str, *, inbound: bool
) -> None:
    line = reported(inbound=inbound, lacking=lacking)
    assert (line.state, line.why) == (state, says)
