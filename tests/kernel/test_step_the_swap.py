"""A reload is stopped before every single write, and traffic asks which policy is in force: the old one or the new one,
as a whole, whatever has been written by then. Then the same with an engine that is killed there."""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.abi.numbers import Counter
from engine.kernel.gate import KernelGate
from tests.kernel.host import Host, awaited
from tests.kernel.lab import FAR_DEVICE, INSIDE, OUTSIDE
from tests.support.hello import client_hello

FIRST, SECOND, THIRD, ALWAYS, TLS = 10001, 10002, 10003, 10004, 10443
RULES = {
    "sallyport.rego": (
        "package sallyport\n\n"
        'default_verdict := "allow"\n\n'
        "source_deny contains prefix if some prefix in data.settings.swap.sources\n"
    ),
    "rules/ports/ports.rego": (
        "package sallyport.rules.ports\n\n"
        'scope := {"dest"}\n\n'
        'deny contains "port" if input.dest.port in data.settings.swap.ports\n'
    ),
    "rules/names/names.rego": (
        "package sallyport.rules.names\n\n"
        'scope := {"dest", "name"}\n\n'
        'target_scope := {"dest"}\n\n'
        f"target if input.dest.port == {TLS}\n\n"
        'deny contains "name" if {\n\ttarget\n\tinput.name.value in data.settings.swap.names\n}\n'
    ),
}
PASSED, DENIED, HELD = "passed", "denied", "held"
Vector = dict[str, str]


class Policy:
    """What denies these ports and names, and nothing else."""

    def __init__(self, ports: list[int], names: list[str], source: str) -> None:
        self.text = json.dumps({"swap": {"ports": ports, "names": names, "sources": [f"{source}/32"]}})
        self.vector: Vector = {
            **{f"port {port}": DENIED if port in ports else PASSED for port in (FIRST, SECOND, THIRD, ALWAYS)},
            **{f"name {name}": DENIED if name in names else PASSED for name in NAMES},
            **{f"source {each}": DENIED if each == source else PASSED for each in SOURCES},
        }

    def unexplained(self, seen: Vector, *also: str) -> Vector:
        """Return what was seen and is not as this policy wants it, nor one of these outcomes."""
        return {what: outcome for what, outcome in seen.items() if outcome not in (self.vector[what], *also)}


NAMES = ("first.example.com", "second.example.com")
SOURCES = ("10.77.0.66", "10.77.0.67")
# What one allows the other denies, at both stages and on the way in: no mixture of the two looks like either.
OLD = Policy([FIRST], [NAMES[0]], SOURCES[0])
NEW = Policy([SECOND], [NAMES[1]], SOURCES[1])
# Denies less than NEW of what NEW is asked about first: what is left of a killed NEW would show.
OTHER = Policy([FIRST, THIRD], [NAMES[0]], SOURCES[0])

_DENIALS = (
    Counter.REFUSED_CONNECT, Counter.DROPPED_FLOW, Counter.DROPPED_DEST, Counter.DROPPED_NAME, Counter.DROPPED_SOURCE,
)  # fmt: skip
_HOLDS = (
    Counter.HELD_CONNECT, Counter.HELD_PAYLOAD, Counter.HELD_LATE, Counter.DROPPED_ENGINE_ABSENT,
)  # fmt: skip
"""Not judged yet: on hold, or dropped because nobody has been answering for two seconds."""


_SEND = """
error = 0
try:
    mine[{name!r}].sendall({data!r})
except OSError as gone:
    error = gone.errno
error
"""
# Not the first that comes: one that was held and given up may have been released since.
_ACCEPT = """
while True:
    t, where = ls[{port}].accept()
    if where[1] == {own}:
        break
    t.close()
t.settimeout(14)
taken[{name!r}] = t
"""
_RECEIVE = """
t, got = taken[{name!r}], b""
try:
    got = t.recv(65536) if select.select([t], [], [], 0)[0] else b""
except OSError:
    pass
bool(got)
"""


class Traffic:
    """Asks the gate by connections, and tells what became of each."""

    def __init__(self, host: Host) -> None:
        self._gate = KernelGate(host.pins.maps)
        self._client = host.agent()
        self._server = host.agent(outside=True)
        ports = (FIRST, SECOND, THIRD, ALWAYS, TLS)
        self._server.do(f"import select; taken = {{}}; ls = {{p: listening({OUTSIDE!r}, p) for p in {ports}}}")
        self._client.do(f"import select; mine = {{}}; inbox = bound({INSIDE!r}, 9000)")
        for source in SOURCES:
            host.outside.ip("address", "add", f"{source}/24", "dev", FAR_DEVICE)

    def open(self, name: str, port: int) -> bool:
        """Try to open a connection that stays."""
        return self._connect(name, port) == PASSED

    def says(self, name: str, data: bytes) -> str:
        """Send on an open connection; it is denied too where it has been ended."""
        return self._tried(
            _SEND.format(name=name, data=data),
            lambda: self._server.do(_RECEIVE.format(name=name)),
        )

    def ask(self) -> Vector:
        """Try everything once."""
        seen = {}
        for port in (FIRST, SECOND, THIRD, ALWAYS):
            seen[f"port {port}"] = self._connect("probe", port)
            self.close("probe")
        for name in NAMES:
            seen[f"name {name}"] = self._connect("probe", TLS)
            if seen[f"name {name}"] == PASSED:
                seen[f"name {name}"] = self.says("probe", client_hello(name))
            self.close("probe")
        for source in SOURCES:
            seen[f"source {source}"] = self._comes(source)
        return seen

    def _comes(self, source: str) -> str:
        """Send a datagram from outside."""
        before = self._gate.counters()
        self._server.do(f"u = bound({source!r}, 0)\nu.sendto(b'x', ({INSIDE!r}, 9000))\nu.close()")
        return self._outcome(
            before,
            lambda: self._client.do("got = bool(select.select([inbox], [], [], 0)[0])\nif got: inbox.recv(9)\ngot"),
        )

    def close(self, name: str) -> None:
        """Close with a reset, so that nothing is sent again."""
        self._client.do(f"mine.pop({name!r}).close()")
        self._server.do(f"t = taken.pop({name!r}, None)\nif t: t.close()")

    def _connect(self, name: str, port: int) -> str:
        outcome = self._tried(
            f"s = mine[{name!r}] = tcp({OUTSIDE!r}); s.setblocking(False); e = s.connect_ex(({OUTSIDE!r}, {port}))\n"
            "0 if e == errno.EINPROGRESS else e",
            lambda: self._client.do(
                "bool(select.select([], [s], [], 0)[1]) and not s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)"
            ),
        )
        if outcome == PASSED:
            own = self._client.do("s.setblocking(True)\ns.getsockname()[1]")
            self._server.do(_ACCEPT.format(name=name, port=port, own=own))
        return outcome

    def _tried(self, statements: str, passed: Callable[[], Any]) -> str:
        before = self._gate.counters()
        return DENIED if self._client.do(statements) else self._outcome(before, passed)

    def _outcome(self, before: dict[Counter, int], passed: Callable[[], Any]) -> str:
        def look() -> str:
            now = self._gate.counters()
            if passed():
                return PASSED
            for outcome, counters in ((DENIED, _DENIALS), (HELD, _HOLDS)):
                if any(now[each] > before[each] for each in counters):
                    return outcome
            return ""

        return str(awaited(look, lambda: "neither passed nor denied nor held"))

    def left_of(self, generation: int) -> int:
        """Return how many entries of a generation stand."""
        classes = {number for key, number in self._gate.class_entries() if key.generation == generation}
        return (
            sum(key.generation == generation for key, _ in self._gate.connect_entries())
            + sum(key.name_class in classes for key, _ in self._gate.name_entries())
            + len(classes)
        )

    def generation(self) -> int:
        return self._gate.generation()

    def end(self) -> None:
        self._gate.close()


class Steps:
    """The engine, stopped before each write. Iterating waits for the next write and lets it happen."""

    def __init__(self, path: Path, over: Callable[[], bool]) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._path = path
        self._over = over
        self._line: socket.socket | None = None

    def __iter__(self) -> Iterator[str]:
        while True:
            awaited(lambda: self._waits() or self._over(), lambda: "no further write")
            if not self._waits():
                return
            if self._line is None:
                self._line = self._listener.accept()[0]
            yield self._line.makefile("r").readline().strip()
            self._line.sendall(b".")

    def _waits(self) -> bool:
        return bool(select.select([self._line or self._listener], [], [], 0)[0])

    def close(self) -> None:
        self._path.unlink()
        self._listener.close()
        if self._line is not None:
            self._line.close()


@contextmanager
def stepping(host: Host, over: Callable[[], bool] = lambda: False) -> Iterator[Steps]:
    steps = Steps(host.work / "steps", over)
    try:
        yield steps
    finally:
        steps.close()


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host({**RULES, "settings/swap.json": OLD.text})
    try:
        yield host
    finally:
        host.close()


@pytest.fixture
def traffic(host: Host) -> Iterator[Traffic]:
    start(host)
    traffic = Traffic(host)
    yield traffic
    traffic.end()


def start(host: Host) -> None:
    host.start(module=("tests.kernel.stepping", str(host.work / "steps")))


def put(host: Host, policy: Policy) -> None:
    host.write({"settings/swap.json": policy.text})


def in_force(host: Host, traffic: Traffic, policy: Policy) -> None:
    """Wait until everything is as this policy wants it, and stands in the kernel."""
    seen: list[Vector] = []
    awaited(
        lambda: seen.append(traffic.ask()) or not policy.unexplained(seen[-1]), lambda: (seen[-1], host.engine.told())
    )


def open_all(traffic: Traffic) -> None:
    """Connections in progress: a reload judges them before it is in force."""
    for name, port in (("second", SECOND), ("always", ALWAYS), ("tls", TLS)):
        assert traffic.open(name, port)
    assert traffic.says("tls", client_hello(NAMES[1])) == PASSED


def test_no_step_of_a_reload_shows_a_mixture(host: Host, traffic: Traffic) -> None:
    in_force(host, traffic, OLD)
    open_all(traffic)
    before = traffic.generation()
    writes: list[str] = []
    ended: set[str] = set()

    def over() -> bool:
        # What is left of the old policy goes in two places, one after the other.
        after = writes[writes.index("set_generation") :] if "set_generation" in writes else []
        return "sources.keep" in after and not traffic.left_of(before)

    with stepping(host, over) as steps:
        put(host, NEW)
        for write in steps:
            seen = traffic.ask()
            if "set_generation" in writes:
                assert not NEW.unexplained(seen, HELD), writes
            else:
                assert not OLD.unexplained(seen), writes
            assert traffic.says("always", b"x") == PASSED, writes
            for name in ("second", "tls"):
                if traffic.says(name, b"x") == DENIED:
                    ended.add(name)
                else:
                    assert name not in ended
                    assert "set_generation" not in writes
            writes.append(write)
    assert writes.count("set_generation") == 1
    # Else there was nothing that could have been mixed.
    switch = writes.index("set_generation")
    assert {"set_plan", "put_connect", "put_class", "put_name", "put_flow", "sources.set_plan"} <= set(writes[:switch])
    assert {"remove_connect", "remove_name", "remove_class", "sources.keep"} <= set(writes[switch:])
    assert ended == {"second", "tls"}
    in_force(host, traffic, NEW)
    assert traffic.says("always", b"x") == PASSED


def test_an_engine_killed_at_any_step_of_a_reload_leaves_no_mixture(host: Host, traffic: Traffic) -> None:
    number = beyond = 0
    while beyond < 2:
        in_force(host, traffic, OLD)
        open_all(traffic)
        writes: list[str] = []
        with stepping(host) as steps:
            put(host, NEW)
            for write in steps:
                if len(writes) == number:
                    host.engine.kill()
                    break
                writes.append(write)
        swapped = "set_generation" in writes
        seen = traffic.ask()
        assert not (NEW.unexplained(seen, HELD) if swapped else OLD.unexplained(seen)), writes
        assert traffic.says("always", b"x") == PASSED, writes
        # Another policy by the time the engine is back, or the old one again and the other one a little later.
        put(host, OTHER if number % 2 else OLD)
        start(host)
        if not number % 2:
            in_force(host, traffic, OLD)
            put(host, OTHER)
        in_force(host, traffic, OTHER)
        for name in ("second", "always", "tls"):
            traffic.close(name)
        put(host, OLD)
        number += 1
        beyond += swapped
    assert number > 5
