"""What a person asks for: in force when it is answered, written down, and refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from engine.errors import UsageError
from engine.runtime.commands import Commands
from tests.support import hello as build
from tests.support.rig import Rig, deny_names, run

DENY = {"kind": "verdict", "by": "name", "value": "Good.example", "word": "deny", "reason": "incident 812"}


class Office:
    def __init__(self, folder: Path) -> None:
        self.rig = Rig(folder, deny_names())
        self.changes: list[int] = []

        async def changed() -> None:
            self.changes.append(len(self.rig.gate.name_entries()))

        async def status() -> str:
            return "well"

        async def reload() -> str:
            return "reloaded"

        self.commands = Commands(
            self.rig.orders, self.rig.gatekeeper, self.rig.people, cast("Any", self.rig.diary), self.rig.sources,
            status, reload, changed,
        )  # fmt: skip

    async def ask(self, command: str, **request: Any) -> Any:
        return await self.commands({"command": command, **request})


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


def test_a_verdict_set_is_in_force_before_it_is_answered_and_ends_what_it_refuses(office: Office) -> None:
    async def scene() -> None:
        rig = office.rig
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        client.send(client.tcp(build.client_hello("good.example")))
        await rig.settle()
        before = len(rig.gate.name_entries())
        done = await office.ask("set", order=DENY)
        assert (done["set"]["value"], done["cut"]) == ("good.example", 1)
        assert office.changes == [before + 1]
        kind, detail = rig.diary.notes[-1]
        assert (kind, detail["action"], detail["cut"], detail["reason"]) == ("command", "set", 1, "incident 812")

    run(scene())


def test_a_strategy_set_ends_nothing(office: Office) -> None:
    async def scene() -> None:
        done = await office.ask("set", order={"kind": "strategy", "by": "uid", "value": "7", "word": "ignore"})
        assert done["cut"] == 0

    run(scene())


def test_a_list_shows_what_was_set_and_what_the_policy_decided(office: Office) -> None:
    async def scene() -> None:
        rig = office.rig
        await office.ask("set", order=DENY)
        client = rig.client()
        client.send(client.syn())
        await rig.settle()
        listed = await office.ask("list", kind="verdict")
        assert [entry["kind"] for entry in listed] == ["verdict", "policy"]
        assert await office.ask("list", kind="strategy") == []

    run(scene())


def test_clearing_one_and_all(office: Office) -> None:
    async def scene() -> None:
        await office.ask("set", order=DENY)
        await office.ask("set", order={**DENY, "value": "other.example"})
        await office.ask("set", order={"kind": "strategy", "by": "uid", "value": "7", "word": "ignore"})
        assert await office.ask("clear", kind="verdict", order={**DENY, "word": "allow"}) == {"cleared": 1}
        with pytest.raises(UsageError, match="no such setting"):
            await office.ask("clear", kind="verdict", order=DENY)
        assert await office.ask("clear", kind="verdict", all=True) == {"cleared": 1}
        assert await office.ask("clear", kind="verdict", all=True) == {"cleared": 0}
        assert len(await office.ask("list", kind="strategy")) == 1

    run(scene())


@pytest.mark.parametrize(
    ("command", "request_"),
    [
        ("dance", {}), ("list", {}), ("list", {"kind": ["verdict"]}), ("set", {}), ("set", {"order": []}),
        ("set", {"order": {**DENY, "value": "*"}}), ("clear", {"kind": "verdict"}), ("clear", {"all": True}),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_and_changes_nothing(
    office: Office, command: str, request_: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        run(office.ask(command, **request_))
    assert (office.changes, office.rig.diary.notes) == ([], [])


def test_status_and_reload_are_the_engines_own(office: Office) -> None:
    assert run(office.ask("status")) == "well"
    assert run(office.ask("reload")) == "reloaded"
