"""A person's word: read or refused with a sentence, in force at once, kept over a restart, gone when it expires."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import Any

import pytest

from engine.abi.numbers import DestinationClass, KernelVerdict, NameClass, Present, StrategyKind
from engine.abi.records import (
    ConnectKey,
    DestinationKey,
    NameKey,
    SourceKey,
    StrategyKey,
    VerdictEntry,
)
from engine.config import NeverDeny
from engine.errors import StateError, UsageError
from engine.model.facts import Transport
from engine.model.net import to_key
from engine.ports import MapFullError
from engine.runtime.force import Numbering
from engine.runtime.identity import ExeRecord
from engine.runtime.orders import Order, Orders, resolvers
from tests.support.simulator import SimulatedGate

WALL, MONOTONIC = 1_800_000_000.0, 10**15
LONG = ".".join(["n" * 50] * 4)


class Desk:
    """Orders over a simulated gate, in a folder that stands for the cgroup mount."""

    def __init__(self, folder: Path, gate: SimulatedGate | None = None, **sizes: int) -> None:
        self.folder = folder
        self.gate = gate or SimulatedGate(sizes)
        self.mount = folder / "cgroup"
        self.mount.mkdir(exist_ok=True)
        self.executables: list[ExeRecord] = []
        self.orders = Orders(
            self.gate, folder / "orders.json", Numbering(), self.mount,
            lambda present: self.gate.calls.append(("present", present)), lambda: self.executables,
        )  # fmt: skip

    def set(self, by: str, value: str, word: str = "deny", kind: str = "verdict", **more: Any) -> Order:
        order = make(by, value, word, kind, **more)
        self.orders.set(order)
        return order

    def restarted(self) -> Desk:
        desk = Desk(self.folder, self.gate)
        desk.executables = self.executables
        return desk


def make(by: str, value: str, word: str = "deny", kind: str = "verdict", **more: Any) -> Order:
    return Order.make({"kind": kind, "by": by, "value": value, "word": word, **more})


def key(address: str) -> bytes:
    return to_key(ipaddress.ip_address(address))


@pytest.fixture(autouse=True)
def _clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: WALL)
    monkeypatch.setattr("time.clock_gettime_ns", lambda _: MONOTONIC)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


# ---- reading


@pytest.mark.parametrize(
    ("by", "given", "value"),
    [
        ("dest", "192.0.2.77/24", "192.0.2.0/24"),
        ("dest", "192.0.2.1", "192.0.2.1/32"),
        ("dest", "2001:DB8:0::1", "2001:db8::1/128"),
        ("dest", "::ffff:192.0.2.1", "192.0.2.1/32"),
        ("dest", "::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ("source", "2000::1/3", "2000::/3"),
        ("name", "*.Example.COM.", "*.example.com"),
    ],
)
def test_one_selector_has_one_spelling(by: str, given: str, value: str) -> None:
    assert make(by, given).value == value


@pytest.mark.parametrize(
    ("by", "given", "value"), [("uid", "0007", "7"), ("port", "0443", "443"), ("cgroup", "//a/./b/../c/", "/a/c")]
)
def test_one_strategy_selector_has_one_spelling(by: str, given: str, value: str) -> None:
    assert make(by, given, "ignore", "strategy").value == value


BAD: list[tuple[dict[str, Any], str]] = [
    ({"by": "dest", "value": "nowhere"}, "'nowhere' is no dest"),
    ({"by": "dest", "value": "::/0"}, "it would cover every IPv4 address too"),
    ({"by": "source", "value": "::/64"}, "it would cover every IPv4 address too"),
    ({"by": "name", "value": "*.*.example"}, "is no name"),
    ({"by": "name", "value": "b\u00fccher.example"}, "is no name"),
    ({"by": "name", "value": "192.0.2.1"}, "is no name"),
    ({"by": "uid", "value": "7"}, "cannot set uid"),
    ({"word": "ignore"}, "cannot set dest to ignore"),
    ({"kind": "advice"}, "cannot set"),
    ({"kind": ["verdict"]}, "not understood"),
    ({"value": 7}, "not understood"),
    ({"colour": "red"}, "not understood"),
    ({"port": 65_536}, "65536 is no port"),
    ({"port": -1}, "-1 is no port"),
    ({"port": "443"}, "'443' is no port"),
    ({"port": True}, "True is no port"),
    ({"transport": "sctp"}, "'sctp' is no transport"),
    ({"by": "name", "value": "a.example", "port": 443}, "go with a destination"),
    ({"expires": -1}, "no time that a setting can expire at"),
    ({"expires": float("nan")}, "no time that a setting can expire at"),
    ({"expires": float("inf")}, "no time that a setting can expire at"),
    ({"expires": 1e15}, "no time that a setting can expire at"),
    ({"kind": "strategy", "word": "ignore", "by": "uid", "value": "-5"}, "is no uid"),
    ({"kind": "strategy", "word": "ignore", "by": "uid", "value": "4294967295"}, "is no uid"),
    ({"kind": "strategy", "word": "ignore", "by": "uid", "value": "\u0663"}, "is no uid"),
    ({"kind": "strategy", "word": "ignore", "by": "port", "value": "0"}, "is no port"),
    ({"kind": "strategy", "word": "ignore", "by": "exe", "value": "curl"}, "is no absolute path"),
    ({"kind": "strategy", "word": "ignore", "by": "cgroup", "value": "a"}, "is no absolute path"),
    ({"kind": "strategy", "word": "deny", "by": "exe", "value": "/bin/a"}, "cannot set exe to deny"),
]


@pytest.mark.parametrize(("changes", "sentence"), BAD)
def test_what_cannot_be_set_is_refused_in_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    given = {"kind": "verdict", "by": "dest", "value": "192.0.2.1", "word": "deny", **changes}
    with pytest.raises(UsageError, match=sentence):
        Order.make(given)


def test_something_that_is_no_setting_at_all_is_refused() -> None:
    for given in ([], "x", None, {}):
        with pytest.raises(UsageError, match="not understood"):
            Order.make(given)  # type: ignore[arg-type]


# ---- in force


def test_each_selector_becomes_the_keys_that_the_gate_looks_up(desk: Desk) -> None:
    desk.executables = [ExeRecord(3, "/bin/a", 1, 1, 1, 1), ExeRecord(4, "/bin/b", 1, 2, 1, 1)]
    (desk.mount / "a").mkdir()
    desk.set("dest", "192.0.2.0/24")
    desk.set("dest", "192.0.2.1", port=443)
    desk.set("dest", "192.0.2.1", "allow", port=53, transport="udp")
    desk.set("source", "2001:db8::/32")
    desk.set("name", "a.example", "reject")
    desk.set("name", "*.b.example")
    for by, value in (("exe", "/bin/a"), ("cgroup", "/a"), ("uid", "0"), ("port", "22"), ("dest", "192.0.2.1")):
        desk.set(by, value, "ignore", "strategy")
    verdict, strategy = DestinationClass.SET, DestinationClass.STRATEGY
    assert {key: KernelVerdict(entry.verdict) for key, entry in desk.gate.destination_entries()} == {
        DestinationKey(verdict, 0, 0, key("192.0.2.0"), 120): KernelVerdict.DENY,
        DestinationKey(verdict, 6, 443, key("192.0.2.1")): KernelVerdict.DENY,
        DestinationKey(verdict, 17, 443, key("192.0.2.1")): KernelVerdict.DENY,
        DestinationKey(verdict, 17, 53, key("192.0.2.1")): KernelVerdict.ALLOW,
        DestinationKey(strategy, 6, 22, bytes(16), 0): KernelVerdict.IGNORE,
        DestinationKey(strategy, 17, 22, bytes(16), 0): KernelVerdict.IGNORE,
        DestinationKey(strategy, 0, 0, key("192.0.2.1")): KernelVerdict.IGNORE,
    }
    assert {key: KernelVerdict(entry.verdict) for key, entry in desk.gate.name_entries()} == {
        NameKey(NameClass.SET, b"elpmaxe.a\0"): KernelVerdict.REJECT,
        NameKey(NameClass.SET, b"elpmaxe.b."): KernelVerdict.DENY,
    }
    assert [key for key, _ in desk.gate.source_entries()] == [SourceKey(0, key("2001:db8::"), 32)]
    assert {key for key, _ in desk.gate.strategy_entries()} == {
        StrategyKey(StrategyKind.EXE, 3),
        StrategyKey(StrategyKind.CGROUP, (desk.mount / "a").stat().st_ino),
        StrategyKey(StrategyKind.USER, 0),
    }


def test_the_short_cut_is_set_before_the_first_entry_and_cleared_after_the_last(desk: Desk) -> None:
    order = desk.set("name", "a.example")
    assert [name for name, _ in desk.gate.calls] == ["present", "name"]
    assert desk.gate.calls[0][1] == Present.SET_NAME
    desk.set("name", "b.example")
    desk.orders.clear(order.selector)
    assert desk.gate.calls[-1] == ("present", Present.SET_NAME)
    desk.orders.clear(make("name", "b.example").selector)
    assert desk.gate.calls[-1] == ("present", Present(0))
    assert desk.gate.name_entries() == []


@pytest.mark.parametrize(
    ("by", "value", "kind", "bit"),
    [
        ("dest", "192.0.2.1", "verdict", Present.SET_DEST),
        ("source", "192.0.2.1", "verdict", Present.SET_SOURCE),
        ("dest", "192.0.2.1", "strategy", Present.STRATEGY_DEST),
        ("port", "22", "strategy", Present.STRATEGY_DEST),
        ("uid", "0", "strategy", Present.STRATEGY_ID),
        ("exe", "/bin/a", "strategy", Present.STRATEGY_ID),
    ],
)
def test_every_kind_has_its_short_cut(desk: Desk, by: str, value: str, kind: str, bit: Present) -> None:
    desk.set(by, value, "deny" if kind == "verdict" else "observe", kind)
    assert desk.orders.present() == bit


def test_a_second_word_about_the_same_takes_the_place_of_the_first(desk: Desk) -> None:
    desk.set("name", "a.example", "deny")
    desk.set("name", "A.example", "allow")
    assert [order.word for order in desk.orders.of_kind("verdict")] == ["allow"]
    assert [entry.verdict for _, entry in desk.gate.name_entries()] == [KernelVerdict.ALLOW]


def test_a_name_too_long_for_the_gate_is_kept_for_the_engine(desk: Desk) -> None:
    desk.set("name", LONG)
    desk.set("name", f"*.{LONG}", "allow")
    assert desk.gate.name_entries() == []
    assert desk.orders.present() == Present.SET_NAME
    found = desk.orders.about_name(LONG)
    assert found is not None
    assert found.word == "deny"
    desk.restarted().orders.start(())


def test_the_exact_name_comes_before_the_longest_wildcard(desk: Desk) -> None:
    for value in ("*.example", "*.b.example", "a.b.example"):
        desk.set("name", value)
    answers = {name: desk.orders.about_name(name) for name in ("a.b.example", "c.b.example", "c.example", "example")}
    assert {name: order.value if order else "" for name, order in answers.items()} == {
        "a.b.example": "a.b.example", "c.b.example": "*.b.example", "c.example": "*.example", "example": "",
    }  # fmt: skip
    # The gate's trie says the same.
    for name, order in answers.items():
        entry = desk.gate.longest_name(NameClass.SET, name.encode()[::-1] + b"\0")
        assert (entry is None) is (order is None)
        reason = desk.orders.reason(entry.id) if entry else None
        assert order is None or (reason is not None and order.value in reason.message)


def test_an_executable_that_is_seen_later_falls_under_the_setting(desk: Desk) -> None:
    desk.set("exe", "/bin/a", "ignore", "strategy")
    assert desk.gate.strategy_entries() == []
    desk.orders.executable(ExeRecord(8, "/bin/a", 1, 1, 1, 1))
    desk.orders.executable(ExeRecord(9, "/bin/b", 1, 2, 1, 1))
    assert [key for key, _ in desk.gate.strategy_entries()] == [StrategyKey(StrategyKind.EXE, 8)]
    # Cleared with the setting, although nobody remembers the executable by now.
    assert desk.orders.clear(make("exe", "/bin/a", "ignore", "strategy").selector)
    assert desk.gate.strategy_entries() == []


def test_a_control_group_is_one_whichever_way_it_is_written(desk: Desk) -> None:
    (desk.mount / "a").mkdir()
    desk.set("cgroup", "/a", "ignore", "strategy")
    desk.set("cgroup", f"{desk.mount}/a", "observe", "strategy")
    assert [(order.value, order.word) for order in desk.orders.of_kind("strategy")] == [("/a", "observe")]
    assert len(desk.gate.strategy_entries()) == 1
    assert desk.orders.clear(make("cgroup", f"{desk.mount}/a/", "ignore", "strategy").selector)
    assert desk.gate.strategy_entries() == []


def test_a_control_group_that_does_not_exist_is_refused(desk: Desk) -> None:
    with pytest.raises(UsageError, match="There is no control group /nowhere"):
        desk.set("cgroup", "/nowhere", "ignore", "strategy")
    assert desk.orders.of_kind("strategy") == []


def test_a_service_that_is_restarted_stays_under_its_setting(desk: Desk) -> None:
    """It gets a control group of the same path and another number; and the old number means nothing any more."""
    folder = desk.mount / "a"
    folder.mkdir()
    before = folder.stat().st_ino
    desk.set("cgroup", "/a", "ignore", "strategy")
    folder.rmdir()
    (desk.mount / "other").mkdir()
    desk.orders.expire()
    assert desk.gate.strategy_entries() == []
    folder.mkdir()
    after = folder.stat().st_ino
    desk.orders.expire()
    assert [key.value for key, _ in desk.gate.strategy_entries()] == [after]
    desk.orders.clear(make("cgroup", "/a", "ignore", "strategy").selector)
    assert desk.gate.strategy_entries() == []
    assert before


def test_the_reason_of_an_entry_is_the_persons_own(desk: Desk) -> None:
    desk.set("name", "a.example", reason="incident 812")
    desk.set("uid", "7", "ignore", "strategy")
    [(_, by_name)], [(_, by_uid)] = desk.gate.name_entries(), desk.gate.strategy_entries()
    reasons = [desk.orders.reason(entry.id) for entry in (by_name, by_uid)]
    assert [(reason.rule, reason.message) for reason in reasons if reason] == [
        ("verdict set", "incident 812"),
        ("strategy set", "uid 7 ignore"),
    ]
    assert desk.orders.reason(9999) is None


# ---- when it fails


def test_a_word_that_finds_no_room_is_not_kept_either(tmp_path: Path) -> None:
    desk = Desk(tmp_path, name_verdicts=1)
    desk.set("name", "a.example")
    with pytest.raises(MapFullError):
        desk.set("name", "b.example")
    assert [order.value for order in desk.orders.of_kind("verdict")] == ["a.example"]
    assert [order["value"] for order in json.loads((tmp_path / "orders.json").read_text())] == ["a.example"]


def test_a_word_that_finds_room_for_half_of_it_is_taken_back_whole(tmp_path: Path) -> None:
    desk = Desk(tmp_path, destinations=1)
    with pytest.raises(MapFullError):
        desk.set("dest", "192.0.2.1", port=443)
    assert desk.gate.destination_entries() == []
    assert desk.orders.present() == Present(0)


def test_a_word_that_cannot_be_kept_is_not_in_force(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    (tmp_path / "orders.json").mkdir()
    with pytest.raises(StateError, match="could not be kept"):
        desk.set("name", "a.example")
    assert desk.gate.name_entries() == []
    assert desk.orders.of_kind("verdict") == []


# ---- a restart


def test_settings_survive_a_restart_and_nothing_else_does(desk: Desk) -> None:
    desk.set("name", "a.example", reason="why")
    desk.set("dest", "192.0.2.1", port=443, transport="tcp")
    gate, entry = desk.gate, VerdictEntry(KernelVerdict.DENY, 5)
    # What an engine before left there, and no setting explains; and what belongs to the policy.
    gate.put_destination(DestinationKey(DestinationClass.SET, 0, 0, key("192.0.2.9")), entry)
    gate.put_strategy(StrategyKey(StrategyKind.USER, 9), entry)
    gate.put_name(NameKey(NameClass.SET, b"x\0"), entry)
    gate.put_name(NameKey(20, b"x\0"), entry)
    gate.put_sources([(SourceKey(0, bytes(16), 8), entry), (SourceKey(3, bytes(16), 8), entry)])
    gate.put_connect(ConnectKey(3, 0), entry)
    again = desk.restarted()
    again.orders.start(())
    assert again.orders.of_kind("verdict") == desk.orders.of_kind("verdict")
    assert [key for key, _ in gate.destination_entries()] == [
        DestinationKey(DestinationClass.SET, 6, 443, key("192.0.2.1"))
    ]
    assert {key for key, _ in gate.name_entries()} == {NameKey(NameClass.SET, b"elpmaxe.a\0"), NameKey(20, b"x\0")}
    assert [key.generation for key, _ in gate.source_entries()] == [3]
    assert gate.strategy_entries() == []


def test_the_never_deny_list_is_written_anew_at_each_start(desk: Desk) -> None:
    prefix = ipaddress.ip_network
    desk.orders.start((NeverDeny(prefix("192.0.2.0/24"), (22, 80), Transport.TCP), NeverDeny(prefix("::1/128"))))
    kind = DestinationClass.NEVER_DENY
    assert {key for key, _ in desk.gate.destination_entries()} == {
        DestinationKey(kind, 6, 22, key("192.0.2.0"), 120), DestinationKey(kind, 6, 80, key("192.0.2.0"), 120),
        DestinationKey(kind, 0, 0, key("::1")),
    }  # fmt: skip
    assert desk.orders.present() == Present.NEVER_DENY
    again = desk.restarted()
    again.orders.start((NeverDeny(prefix("198.51.100.1"), (53,)),))
    assert {key[:4] for key, _ in desk.gate.destination_entries()} == {
        (kind, 6, 53, key("198.51.100.1")), (kind, 17, 53, key("198.51.100.1")),
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "7", "{}x", '["x"]', '[{"kind": "verdict"}]',
        '[{"kind": "verdict", "by": "dest", "value": "192.0.2.1", "word": "deny", "port": 70000}]',
        '[{"kind": "strategy", "by": "uid", "value": "-1", "word": "ignore"}]',
    ],
)  # fmt: skip
def test_a_damaged_file_is_named(desk: Desk, text: str) -> None:
    (desk.folder / "orders.json").write_text(text)
    with pytest.raises(StateError, match=r"orders\.json cannot be read") as caught:
        desk.orders.start(())
    assert "Mend the file or remove it." in caught.value.hint


# ---- expiry


def test_what_expires_is_gone_in_the_gate_the_file_and_the_list(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    order = desk.set("name", "a.example", expires=WALL + 600)
    desk.set("name", "b.example")
    assert [entry.expires for _, entry in desk.gate.name_entries()] == [MONOTONIC + 600 * 10**9, 0]
    assert desk.orders.expire() == []
    monkeypatch.setattr("time.time", lambda: WALL + 600)
    assert desk.orders.about_name("a.example") is None
    assert desk.orders.expire() == [order]
    assert [key.reversed_name for key, _ in desk.gate.name_entries()] == [b"elpmaxe.b\0"]
    assert [given["value"] for given in json.loads((desk.folder / "orders.json").read_text())] == ["b.example"]


def test_what_expired_while_no_engine_ran_does_not_come_back(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.set("name", "a.example", expires=WALL + 600)
    desk.set("name", "b.example", expires=WALL + 6000)
    monkeypatch.setattr("time.time", lambda: WALL + 700)
    again = desk.restarted()
    again.orders.start(())
    assert [order.value for order in again.orders.of_kind("verdict")] == ["b.example"]
    assert [entry.expires for _, entry in desk.gate.name_entries()] == [MONOTONIC + 5300 * 10**9]


def test_resolvers_are_spared_on_port_53() -> None:
    text = "# nameserver 9.9.9.9\nnameserver 192.0.2.53\nsearch x\nnameserver fe80::1%eth0\nnameserver\nnameserver x\n"
    assert [(str(entry.prefix), entry.ports, entry.transport) for entry in resolvers(text)] == [
        ("192.0.2.53/32", (53,), None),
        ("fe80::1/128", (53,), None),
    ]
