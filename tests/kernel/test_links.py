"""Interfaces that come, go, come back, change their names and lose their filters, while the engine runs."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from engine.kernel import attach
from engine.kernel.detach import pass_everything
from engine.kernel.keeper import Keeper
from engine.kernel.links import Known, What
from tests.kernel.host import CLOSED, OPEN, Arrivals, Host, awaited
from tests.kernel.lab import DEVICE, FAR_DEVICE, Lab
from tests.support.netns import join

WORDS = (DEVICE, "late*")
EVERY = {"gate_egress"}
"""Under a policy that says nothing about what comes in."""


@pytest.fixture(scope="module")
def _host() -> Iterator[Host]:
    host = Host()
    try:
        host.start(WORDS)
        yield host
    finally:
        host.close()


@pytest.fixture
def host(_host: Host) -> Iterator[Host]:
    yield _host
    _host.dismiss()


def guards(host: Host, device: str) -> bool:
    return set(host.filters(device)) == EVERY


def guarded(host: Host, device: str) -> None:
    awaited(lambda: guards(host, device), host.engine.told)


def judged(host: Host, far: str, network: int, port: int) -> None:
    """A denied connection over this network stays inside, an allowed one goes through. Ports: one for each question, so
    that nothing stands yet."""
    address = f"10.{network}.0.2"
    arrivals = Arrivals(host.outside, far)
    client, server = host.agent(), host.agent(outside=True)
    with pytest.raises(OSError, match=r"\[Errno"):
        client.do(f"connected({address!r}, {CLOSED + port})")
    server.do(f"l = listening({address!r}, {OPEN + port})")
    client.do(f"s = connected({address!r}, {OPEN + port}); s.sendall(b'through')")
    assert server.do("exactly(accepted(l), 7)") == b"through"
    assert arrivals.take() == []
    arrivals.close()


def test_one_that_matches_is_guarded_when_it_appears(host: Host) -> None:
    join(host.inside, host.outside, "late0", "late0-far", 78)
    host.engine.tells("interface late0 is guarded")
    guarded(host, "late0")
    judged(host, "late0-far", 78, 1)
    assert "late0" in host.engine.status()["interfaces"]
    host.inside.ip("link", "del", "late0")
    host.engine.tells("interface late0 is gone")
    status = host.engine.status()
    assert list(status["interfaces"]) == [DEVICE]
    assert status["state"] == "healthy", "what a pattern speaks of may come and go"
    awaited(lambda: [note for note in host.notes("alert") if "late0 is gone" in note["summary"]], host.engine.told)


def test_one_that_comes_back_under_another_index_is_guarded_again(host: Host) -> None:
    before = host.engine.status()["interfaces"][DEVICE]["ifindex"]
    host.inside.ip("link", "del", DEVICE)
    host.engine.tells("CRITICAL", f"interface {DEVICE} is gone")
    awaited(lambda: host.engine.status()["problems"] == [f"interface {DEVICE} is gone"], host.engine.told)
    join(host.inside, host.outside, DEVICE, FAR_DEVICE)
    host.engine.tells(f"interface {DEVICE} is guarded")
    guarded(host, DEVICE)
    judged(host, FAR_DEVICE, 77, 2)
    status = host.engine.status()
    assert status["interfaces"][DEVICE]["ifindex"] > before
    assert status["problems"] == []


def test_one_that_flaps_faster_than_anybody_looks_ends_guarded(host: Host) -> None:
    for network in range(100, 110):
        join(host.inside, host.outside, "late1", "late1-far", network)
        if network < 109:
            host.inside.ip("link", "del", "late1")
    guarded(host, "late1")
    judged(host, "late1-far", 109, 3)
    host.inside.ip("link", "del", "late1")


def test_one_that_goes_down_and_up_keeps_its_filters(host: Host) -> None:
    for state in ("down", "up"):
        host.inside.ip("link", "set", DEVICE, state)
    assert guards(host, DEVICE)
    judged(host, FAR_DEVICE, 77, 4)


def test_one_that_is_renamed_stays_guarded_under_its_new_name(host: Host) -> None:
    join(host.inside, host.outside, "late2", "late2-far", 79)
    guarded(host, "late2")
    host.inside.ip("link", "set", "late2", "name", "other2")
    host.engine.tells("interface other2 is guarded under its new name")
    # A released packet leaves by the name: a stale one would end it.
    judged(host, "late2-far", 79, 5)
    host.inside.ip("link", "del", "other2")


def test_many_at_once_are_all_guarded(host: Host) -> None:
    names = [f"late-{number}" for number in range(30)]
    batch = "\n".join(f"link add {name} type veth peer name {name}-far" for name in names)
    subprocess.run(["ip", "-n", host.inside.name, "-batch", "-"], input=batch, text=True, check=True)
    wanted = {*names, *(f"{name}-far" for name in names)}
    awaited(lambda: wanted <= host.engine.status()["interfaces"].keys(), host.engine.told)
    assert all(guards(host, name) for name in wanted)
    for name in names:
        host.inside.ip("link", "del", name)
    awaited(lambda: not wanted & host.engine.status()["interfaces"].keys(), host.engine.told)


def test_a_filter_that_is_taken_off_is_put_back_and_told(host: Host) -> None:
    subprocess.run(["tc", "-n", host.inside.name, "qdisc", "del", "dev", DEVICE, "clsact"], check=True)
    host.engine.tells("CRITICAL", f"interface {DEVICE} had a filter of the gate taken off")
    guarded(host, DEVICE)
    judged(host, FAR_DEVICE, 77, 6)


def test_one_without_an_ethernet_header_is_said_to_be_unguarded(host: Host) -> None:
    host.inside.ip("tuntap", "add", "late-tun", "mode", "tun")
    host.engine.tells("CRITICAL", "interface late-tun is not guarded", "no Ethernet header")
    awaited(lambda: host.engine.status()["state"] == "degraded", host.engine.told)
    host.inside.ip("link", "del", "late-tun")
    awaited(lambda: host.engine.status()["state"] == "healthy", host.engine.told)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_the_child_that_looks_after_interfaces_may_fail(host: Host, number: signal.Signals) -> None:
    """A killed one is replaced, and so is one that hangs, in the end; an engine that is told to stop does not wait."""
    os.kill(host.engine.child("engine.kernel.keeper"), number)
    join(host.inside, host.outside, "late8", "late8-far", 86)
    if number == signal.SIGKILL:
        guarded(host, "late8")
        judged(host, "late8-far", 86, 9)
    else:
        assert host.engine.stop() == 0
        assert host.filters(DEVICE) == []
        host.start(WORDS)
        guarded(host, "late8")
    host.inside.ip("link", "del", "late8")


def test_the_denied_source_is_dropped_on_one_that_came_later(host: Host) -> None:
    """The program of the sources is attached only while a source is denied: to the late ones too."""
    join(host.inside, host.outside, "late3", "late3-far", 80)
    guarded(host, "late3")
    done = host.sallyport("verdict", "set", "--source", "10.80.0.2/32", "deny")
    assert done.returncode == 0, done.stderr
    shown = lambda device: "prog/xdp" in host.inside.ip("-details", "link", "show", device)  # noqa: E731
    awaited(lambda: shown("late3") and shown(DEVICE), host.engine.told)
    join(host.inside, host.outside, "late4", "late4-far", 81)
    awaited(lambda: shown("late4"), host.engine.told)
    assert host.sallyport("verdict", "clear", "--source", "10.80.0.2/32").returncode == 0
    awaited(lambda: not any(map(shown, ("late3", "late4", DEVICE))), host.engine.told)
    for device in ("late3", "late4"):
        host.inside.ip("link", "del", device)


def test_panic_finds_what_came_later_and_nothing_is_put_back(host: Host) -> None:
    """The engine runs on, and what it would guard appears after the panic."""
    join(host.inside, host.outside, "late5", "late5-far", 82)
    join(host.inside, host.outside, "late6", "late6-far", 83)
    for device in ("late5", "late6"):
        guarded(host, device)
    host.inside.ip("link", "del", "late6")
    done = host.sallyport("panic")
    assert done.returncode == 0, done.stdout
    assert "detached from 2 interfaces" in done.stdout
    join(host.inside, host.outside, "late6", "late6-far", 83)
    host.engine.tells("interface late6 is not guarded", "taken down")
    assert [host.filters(device) for device in (DEVICE, "late5", "late6")] == [[], [], []]
    client, server = host.agent(), host.agent(outside=True)
    server.do(f"l = listening('10.82.0.2', {CLOSED})")
    client.do(f"s = connected('10.82.0.2', {CLOSED}); s.sendall(b'through')")
    assert server.do("exactly(accepted(l), 7)") == b"through"
    assert host.engine.status()["state"] == "degraded"
    assert host.engine.stop() == 0
    for device in ("late5", "late6"):
        host.inside.ip("link", "del", device)


def test_panic_without_an_engine_after_interfaces_came_and_went(host: Host) -> None:
    host.start(WORDS)
    join(host.inside, host.outside, "late7", "late7-far", 84)
    guarded(host, "late7")
    host.engine.kill()
    host.inside.ip("link", "del", DEVICE)
    join(host.inside, host.outside, DEVICE, FAR_DEVICE)
    done = host.sallyport("panic")
    assert (done.returncode, "detached from 1 interfaces" in done.stdout) == (0, True), done.stdout
    assert host.filters("late7") == []
    host.inside.ip("link", "del", "late7")


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("missing0", "There is no interface 'missing0'"),
        ("lo", "Interface lo is the loopback"),
        ("tunnel0", "Interface tunnel0 has no Ethernet header"),
    ],
)
def test_a_name_that_cannot_be_guarded_is_an_error_at_the_start(host: Host, word: str, says: str) -> None:
    if word == "tunnel0":
        host.inside.ip("tuntap", "add", word, "mode", "tun")
    engine = host.begin((DEVICE, word))
    assert engine.process.wait() == 7
    assert engine.lines(says)
    assert host.filters(DEVICE) == []


def test_a_pattern_that_matches_nothing_yet_is_none(host: Host) -> None:
    engine = host.start(("never*", "soon*"))
    assert engine.lines("hold and release at TC egress", "no interface matches the patterns yet")
    join(host.inside, host.outside, "soon0", "soon0-far", 85)
    guarded(host, "soon0")
    judged(host, "soon0-far", 85, 7)
    host.inside.ip("link", "del", "soon0")
    assert engine.stop() == 0


def test_a_pattern_never_means_the_loopback_or_the_hold_device(host: Host) -> None:
    engine = host.start(("*",))
    names = set(engine.status()["interfaces"])
    assert DEVICE in names
    assert not {name for name in names if name == "lo" or name.startswith(("hold-", "held-"))}
    assert not engine.lines("interface lo")
    judged(host, FAR_DEVICE, 77, 8)
    assert engine.stop() == 0


def test_without_the_capability_it_says_so(host: Host) -> None:
    words = ("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", "--")
    engine = host.begin(before=words)
    assert engine.process.wait() == 5
    assert engine.lines("Operation not permitted")
    assert engine.lines("CAP_NET_ADMIN")


def test_a_look_finds_what_is_missing_and_says_it_once(lab: Lab) -> None:
    """Whatever netlink told, or lost: a look is at everything."""
    lab.load()
    index = lab.inside.call(lambda: attach.interface_index(DEVICE))
    known = Known([DEVICE], [], {index: DEVICE})

    def look() -> list[What]:
        return lab.inside.call(lambda: [news.what for news in Keeper(lab.pins, known).look()])

    assert look() == []
    subprocess.run(["tc", "-n", lab.inside.name, "qdisc", "del", "dev", DEVICE, "clsact"], check=True)
    assert look() == [What.RESTORED]
    assert look() == []
    lab.inside.ip("link", "set", DEVICE, "down")
    lab.inside.ip("link", "set", DEVICE, "name", "renamed0")
    assert look() == [What.RENAMED]
    pass_everything(lab.pins)
    assert look() == [What.REFUSED]
    assert look() == []
    assert not known.trying
    lab.inside.ip("link", "del", "renamed0")
    assert look() == [What.GONE]
    assert (known.guarded, known.refused) == ({}, {})
    join(lab.inside, lab.outside, DEVICE, FAR_DEVICE)
