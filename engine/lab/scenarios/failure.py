"""The engine comes and goes: started, killed, started again, panicked, observing, stopped."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from engine.abi.numbers import Counter
from engine.lab.container import INSIDE, LATE
from engine.lab.gate import Since
from engine.lab.lab import Lab, spoken
from engine.lab.scenario import Scenario, Sight
from engine.lab.scenarios.changes import STEADY
from engine.lab.scenarios.names import ALLOWED, DENIED_NAME, UNSEEN
from engine.lab.servers import PROBE_PORT
from engine.lab.topology import DENIED, DEVICE, SERVER, SERVER6
from engine.lab.waiting import until

_ABSENT_SECONDS = 15.0
_PROBES = 10


def _start(lab: Lab, saw: Sight) -> None:
    line = lab.gate.start()
    saw(line.startswith("sallyport: enforce on "), line)
    status = lab.gate.status()
    problems = ", ".join(map(str, status.get("problems", [])))
    saw(status["state"] == "healthy", f"status: {status['state']} {problems}".strip())


@contextmanager
def _waiting_curl(lab: Lab, name: str, address: str) -> Iterator[subprocess.Popen[bytes]]:
    """A curl that nobody answers, for as long as somebody looks."""
    process = lab.place.start(lab.curl_words(name, address), stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _killed(lab: Lab, saw: Sight) -> None:
    # What is to stand must have been decided, in the generation that is in force by now.
    known = {lab.curl(ALLOWED), lab.python(DENIED_NAME), lab.python(DENIED_NAME, port=PROBE_PORT)}
    saw(known >= {ALLOWED} and DENIED_NAME not in known, "known: one allowed, one denied")
    lab.python(ALLOWED, DENIED)
    lab.gate.kill()
    answer = lab.curl(ALLOWED)
    saw(answer == ALLOWED, f"killed; the known allowed: {answer}")
    answer = spoken(lab.plain.ask("again", key=STEADY))
    saw(answer == ALLOWED, f"a connection lives on: {answer}")
    lab.arrived()
    since = Since(lab.gate)
    with _waiting_curl(lab, DENIED_NAME, SERVER):
        dropped = since.grows(Counter.DROPPED_NAME)
    arrived = lab.arrived()
    saw(dropped >= 1 and arrived.nothing, f"the known denied: dropped_name +{dropped}, {arrived.bytes} bytes arrived")
    answer = lab.python(ALLOWED, DENIED)
    saw(answer == "EPERM at connect", f"the denied address: {answer}")
    lab.arrived(SERVER6)
    since = Since(lab.gate)
    with _waiting_curl(lab, UNSEEN, SERVER6):
        dropped = since.grows(Counter.DROPPED_ENGINE_ABSENT, seconds=_ABSENT_SECONDS)
    arrived = lab.arrived(SERVER6)
    saw(
        dropped >= 1 and arrived.nothing,
        f"the unseen: dropped_engine_absent +{dropped}, {arrived.bytes} bytes arrived",
    )


def _restarted(lab: Lab, saw: Sight) -> None:
    lab.arrived(port=PROBE_PORT)
    lab.plain.ask("probe", **lab.tls(DENIED_NAME, port=PROBE_PORT))
    try:
        before = _probed(lab, _PROBES)
        lab.gate.start()
        after = _probed(lab, before + _PROBES)
    finally:
        probed = lab.plain.ask("probed", end=True)
    arrived = lab.arrived(port=PROBE_PORT)
    saw(before >= _PROBES and after >= before + _PROBES, f"{probed['attempts']} attempts across the start")
    saw(probed["answers"] == 0 and arrived.nothing, f"{probed['answers']} got through, {arrived.bytes} bytes arrived")
    answer = spoken(lab.plain.ask("again", key=STEADY))
    saw(answer == ALLOWED, f"the allowed connection lives on: {answer}")
    answers = lab.curl(ALLOWED), lab.curl(DENIED_NAME), lab.curl(UNSEEN, SERVER6)
    saw(answers[0] == ALLOWED and answers[1] != DENIED_NAME, f"anew: {answers[0]}, {answers[1]}")
    saw(answers[2] == UNSEEN, f"the unseen: {answers[2]}")


def _probed(lab: Lab, attempts: int) -> int:
    until(lambda: lab.plain.ask("probed")["attempts"] >= attempts)
    return int(lab.plain.ask("probed")["attempts"])


def attached(lab: Lab) -> list[str]:
    """What of a gate there still is: filters, XDP, hold device, pins."""
    found = []
    for device in (DEVICE, INSIDE, LATE):
        ways = ("ingress", "egress")
        filters = [way for way in ways if "bpf" in lab.in_client("tc", "filter", "show", "dev", device, way).out]
        qdisc = ["clsact"] if "clsact" in lab.in_client("tc", "qdisc", "show", "dev", device).out else []
        found += [f"{device} ({', '.join(filters + qdisc)})"] if filters or qdisc else []
    links = lab.in_client("ip", "-details", "link", "show").out
    found += [word for word in ("xdp", lab.gate.pins.hold_device) if word in links]
    found += ["pins"] if lab.gate.pins.root.exists() else []
    found += ["the record"] if lab.gate.pins.record.exists() else []
    return found


def _panic(lab: Lab, saw: Sight) -> None:
    before = attached(lab)
    saw(bool(before), f"attached: {', '.join(before) or 'nothing'}")
    lab.gate.kill()
    done = lab.gate.sallyport("panic")
    saw(done.code == 0, f"the engine killed, panic: exit {done.code} {done.last_words if done.code else ''}".strip())
    left = attached(lab)
    saw(not left, f"left: {', '.join(left) or 'nothing'}")
    answers = lab.curl(DENIED_NAME), lab.python(ALLOWED, DENIED)
    saw(answers == (DENIED_NAME, ALLOWED), f"the denied name and address: {', '.join(answers)}")


def _observe(lab: Lab, saw: Sight) -> None:
    line = lab.gate.start("observe")
    saw(line.startswith("sallyport: observe on "), line)
    for way in (lab.curl, lab.openssl, lab.python):
        answer = way(DENIED_NAME)
        saw(answer == DENIED_NAME, f"{way.__name__}: {answer}")
    answer = lab.python(ALLOWED, DENIED)
    saw(answer == ALLOWED, f"the denied address: {answer}")
    would = until(lambda: [each for each in lab.gate.entries() if (each.name, each.would) == (DENIED_NAME, "deny")])
    saw(bool(would), f"{len(would)} times in the log: it would have been denied")


def _stopped(lab: Lab, saw: Sight) -> None:
    code = lab.gate.stop()
    saw(code == 0, f"SIGTERM: exit {code}")
    left = attached(lab)
    saw(not left, f"left: {', '.join(left) or 'nothing'}")
    status = lab.gate.sallyport("status")
    saw(status.code == 3, f"status: exit {status.code}")


START = (Scenario("the engine starts", "one line once all is attached; healthy", _start, enforcing=False),)
SCENARIOS = (
    Scenario("the engine is killed with SIGKILL", "what is decided stands, the unseen is closed", _killed),
    Scenario("a restart takes over without a gap", "no denied attempt passes, flows live", _restarted, enforcing=False),
    Scenario("panic detaches everything, with no engine", "nothing is left, everything passes", _panic),
    Scenario(
        "observe mode stops nothing", "the denied pass, and the log says what would be", _observe, enforcing=False
    ),
    Scenario("SIGTERM ends the engine and leaves nothing", "exit 0, nothing attached", _stopped),
)
