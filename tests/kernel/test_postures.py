"""What a user notices when something fails, with the real engine: the posture holds, what stands stands, it mends."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.abi.numbers import Counter
from engine.kernel.maps import PerCpuMap
from tests.kernel.host import CLOSED, OPEN, Arrivals, Engine, Host, awaited
from tests.kernel.lab import FAR_DEVICE, OUTSIDE
from tests.support.netns import Agent

EVALUATORS = {"embedded": "engine.policy.child", "opa": "--server"}
"""Every evaluator, and a word by which its child is found."""


@pytest.fixture(scope="module", params=list(EVALUATORS))
def running(request: pytest.FixtureRequest) -> Iterator[Host]:
    host = Host()
    try:
        host.start(config=f'evaluator = "{request.param}"\n')
        yield host
    finally:
        host.close()


@pytest.fixture
def arrivals(host: Host) -> Iterator[Arrivals]:
    opened = Arrivals(host.outside, FAR_DEVICE)
    yield opened
    opened.close()


@pytest.fixture
def fresh() -> Iterator[Host]:
    """A host on which no engine has run yet."""
    host = Host()
    try:
        yield host
    finally:
        host.close()


def serves(host: Host, *ports: int) -> Agent:
    """Listen on all of these."""
    server = host.agent(outside=True)
    server.do(f"ls = [listening({OUTSIDE!r}, port) for port in {ports!r}]")
    return server


def passes(client: Agent, port: int) -> bool:
    """Does a new connection to this port come about?"""
    try:
        client.do(f"connected({OUTSIDE!r}, {port}).close()")
    except OSError:
        return False
    return True


def counter(host: Host, which: Counter) -> int:
    counters = PerCpuMap(host.pins.maps / "counters")
    try:
        return counters.sums()[which]
    finally:
        counters.close()


def stop_and_wait(pid: int) -> None:
    """Stop a process that is not our child, every thread of it."""
    os.kill(pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{pid}/task")
    awaited(lambda: all((task / "stat").read_text().rpartition(")")[2].split()[0] in "Tt" for task in tasks.iterdir()),
            lambda: f"{pid} does not stop")  # fmt: skip


def evaluator(engine: Engine) -> int:
    return engine.child(EVALUATORS[engine.status()["evaluator"]["name"]])


def mended(engine: Engine, restarts: int) -> None:
    awaited(lambda: engine.status()["evaluator"]["restarts"] > restarts, engine.told)


def test_a_hung_evaluator_denies_the_unseen_and_is_replaced(host: Host, arrivals: Arrivals) -> None:
    engine, client = host.engine, host.agent()
    serves(host, OPEN, OPEN + 1, OPEN + 2)
    assert passes(client, OPEN)
    before, restarts = evaluator(engine), engine.status()["evaluator"]["restarts"]
    stop_and_wait(before)
    assert passes(client, OPEN), "what stands needs no evaluator"
    assert not passes(client, OPEN + 1)
    assert not passes(client, CLOSED)
    engine.tells("CRITICAL evaluator_failed", "did not answer within")
    awaited(lambda: passes(client, OPEN + 2), engine.told)
    mended(engine, restarts)
    # Denied for want of an answer: nobody keeps that.
    awaited(lambda: passes(client, OPEN + 1), engine.told)
    assert evaluator(engine) != before
    assert arrivals.take() == []


def test_a_killed_evaluator_comes_back(host: Host, arrivals: Arrivals) -> None:
    engine, client = host.engine, host.agent()
    serves(host, OPEN, OPEN + 3)
    assert passes(client, OPEN)
    restarts = engine.status()["evaluator"]["restarts"]
    os.kill(evaluator(engine), signal.SIGKILL)
    assert passes(client, OPEN)
    assert not passes(client, CLOSED + 1)
    awaited(lambda: passes(client, OPEN + 3), engine.told)
    mended(engine, restarts)
    assert not passes(client, CLOSED + 1)
    assert arrivals.take() == []


FAULTY = {
    "rules/faulty/faulty.rego": (
        'package sallyport.rules.faulty\n\nscope := {"dest"}\n\n'
        # Nothing that a check of the policy would try by itself.
        'deny contains "never" if {\n\tregex.match(`^10[.]7{2}[.]`, input.dest.address)\n'
        f"\tinput.dest.port == {OPEN + 5}\n\tjson.unmarshal(input.dest.address)\n}}\n"
    )
}


def test_a_rule_that_gives_no_answer_ends_no_connection_and_lets_nothing_of_it_out(host: Host) -> None:
    engine, client, server = host.engine, host.agent(), host.agent(outside=True)
    server.do(f"l = listening({OUTSIDE!r}, {OPEN + 5})")
    client.do(f"s = connected({OUTSIDE!r}, {OPEN + 5}); s.sendall(b'before')")
    server.do("p = accepted(l); exactly(p, 6)")

    def unanswered() -> int:
        return len(engine.lines("CRITICAL evaluator_failed", "faulty gave no answer"))

    before = engine.generation()
    host.write(FAULTY)
    try:
        awaited(lambda: engine.generation() > before, engine.told)
        awaited(unanswered, engine.told)
        before = unanswered()
        client.do("s.sendall(b'meanwhile')")
        awaited(lambda: unanswered() > before + 1, engine.told)  # what is sent again asks again
        server.do("p.setblocking(False)")
        with pytest.raises(BlockingIOError):
            server.do("p.recv(1)")
    finally:
        before = engine.generation()
        for name in FAULTY:
            (host.policy / name).unlink()
        awaited(lambda: engine.generation() > before, engine.told)
    server.do("p.settimeout(14)")
    assert server.do("exactly(p, 9)") == b"meanwhile"


def test_a_stopped_engine_is_absent_until_it_goes_on(host: Host, arrivals: Arrivals) -> None:
    engine, client, other = host.engine, host.agent(), host.agent()
    serves(host, OPEN, OPEN + 4)
    client.do(f"s = connected({OUTSIDE!r}, {OPEN})")
    assert not passes(client, CLOSED + 2)
    before = counter(host, Counter.DROPPED_ENGINE_ABSENT)
    engine.pause()
    try:
        # Held by nobody first, then dropped: its SYN is sent again and again.
        other.start(f"s = connected({OUTSIDE!r}, {OPEN + 4})")
        client.do(f"u = udp(); u.connect(({OUTSIDE!r}, {CLOSED + 3}))")
        awaited(lambda: (client.do("u.send(b'leak')"), counter(host, Counter.DROPPED_ENGINE_ABSENT) > before)[1],
                engine.told)  # fmt: skip
        assert not other.finished()
        assert passes(client, OPEN), "what stands needs no engine"
        assert not passes(client, CLOSED + 2)
    finally:
        engine.resume()
    other.result()
    awaited(lambda: engine.status()["state"] == "healthy", engine.told)
    assert arrivals.take() == []


MOST = 24


def test_a_full_verdict_map_keeps_every_deny_and_is_told_once(fresh: Host) -> None:
    engine = fresh.start(config=f"[maps]\ndestinations = {MOST}\n")
    client, arrivals = fresh.agent(), Arrivals(fresh.outside, FAR_DEVICE)
    serves(fresh, OPEN, OPEN + 1)

    def gauge() -> int:
        return int(engine.status()["maps"]["connect_verdicts"]["entries"])

    def fill() -> None:
        for port in range(CLOSED, CLOSED + MOST + 8):
            assert not passes(client, port)

    fill()
    assert engine.status()["maps"]["connect_verdicts"] == {"entries": MOST, "max": MOST}
    engine.tells("CRITICAL map_full", "connect_verdicts is full")
    engine.tells("CRITICAL map_full", "connect_verdicts is over 80% full")
    # The first ones stand in the kernel still: refused at connect, without the engine.
    refused = counter(fresh, Counter.REFUSED_CONNECT)
    for port in range(CLOSED, CLOSED + MOST):
        with pytest.raises(PermissionError):
            client.do(f"connected({OUTSIDE!r}, {port})")
    assert counter(fresh, Counter.REFUSED_CONNECT) == refused + MOST
    # What found no room is decided for its own flow, each time anew.
    assert not passes(client, CLOSED + MOST + 4)
    assert all(passes(client, OPEN) for _ in range(3))
    assert engine.status()["state"] == "degraded"
    # Another policy: the entries of the one before go, and the gauge falls.
    fresh.write({"rules/closed/data.json": "{}"})
    awaited(lambda: gauge() < MOST // 2, engine.told)
    awaited(lambda: engine.status()["state"] == "healthy", engine.told)
    told = engine.lines("over 80% full")
    assert len(told) == 1
    fill()
    awaited(lambda: len(engine.lines("over 80% full")) == 2, engine.told)
    assert len(engine.lines("connect_verdicts is full")) == 2
    assert arrivals.take() == []
    arrivals.close()


@pytest.fixture
def small_disk(fresh: Host) -> Iterator[Path]:
    """The folder of the log, on a disk of its own with little room."""
    folder = fresh.state / "audit"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        fresh.engine.close()
        subprocess.run(["umount", str(folder)], check=True)


def fill_up(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.parametrize("stance", ["open", "closed"])
def test_a_full_disk_follows_its_posture_and_is_mended(fresh: Host, small_disk: Path, stance: str) -> None:
    engine = fresh.start(config=f'[posture]\ndisk_full = "{stance}"\n')
    client, arrivals = fresh.agent(), Arrivals(fresh.outside, FAR_DEVICE)
    serves(fresh, *range(OPEN, OPEN + 4))
    assert passes(client, OPEN)
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        fill_up(ballast)
    # Whatever is to be written now finds no room.
    assert not passes(client, CLOSED)
    engine.tells("CRITICAL loss", "the audit log cannot be written")
    assert engine.status()["state"] == "degraded"
    assert passes(client, OPEN), "what stands needs no log"
    assert passes(client, OPEN + 1) is (stance == "open")
    assert not passes(client, CLOSED + 1)
    ballast.unlink()
    awaited(lambda: engine.status()["state"] == "healthy", engine.told)
    awaited(lambda: passes(client, OPEN + 2), engine.told)
    assert engine.stop() == 0
    checked = fresh.sallyport("audit", "verify")
    assert checked.returncode == 0, checked.stdout
    assert arrivals.take() == []
    arrivals.close()
