"""What the loader answers, and what the engine makes of it."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from engine.errors import InterfaceError, KernelError, PrivilegeError
from engine.kernel.order import Loaded, reply


def test_an_answer_is_read_back() -> None:
    loaded = Loaded(hold_ifindex=5, interfaces={"eth0": 2}, programs={"gate_egress": {"id": 1}}, taken_over=True)
    assert reply("a warning of the compiler\n" + json.dumps({"loaded": asdict(loaded)}) + "\n") == loaded


@pytest.mark.parametrize(
    ("name", "kind"),
    [("InterfaceError", InterfaceError), ("PrivilegeError", PrivilegeError), ("KernelError", KernelError),
     ("Other", KernelError)],
)  # fmt: skip
def test_an_error_keeps_its_family_and_its_hint(name: str, kind: type[KernelError]) -> None:
    with pytest.raises(kind) as caught:
        reply(json.dumps({"error": name, "message": "no", "hint": "do this"}))
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.hint) == ("no", "do this")


@pytest.mark.parametrize("text", ["", "\n", "Segmentation fault", "{"])
def test_no_answer_is_an_error_too(text: str) -> None:
    with pytest.raises(KernelError, match="without an answer"):
        reply(text)
