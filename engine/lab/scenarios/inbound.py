"""What comes in, and who is told at once that it may not: the policy says something of both from here on."""

from __future__ import annotations

from typing import Any

from engine.lab.cast import Remote
from engine.lab.lab import Lab, spoken
from engine.lab.log import Entry
from engine.lab.rules import CLOSED_PORT, INBOUND_PORT, REJECTED_PORT, REJECTED_SERVICES
from engine.lab.scenario import Scenario, Sight
from engine.lab.scenarios.changes import RELOAD_SECONDS, STEADY
from engine.lab.scenarios.names import ALLOWED
from engine.lab.topology import CLIENT, NEIGHBOUR, SERVER, SERVER6
from engine.lab.waiting import until

_SERVICE_PORT, _ASKING_PORT = 7003, 7008
"""Ports of the server's side and of the client's, for datagrams."""
_COULD_NOT_CONNECT = 7
"""curl's exit code. 28 would be: nobody answered in time."""


def _widened(lab: Lab, saw: Sight) -> None:
    generation = lab.gate.generation()
    lab.policy.widen()
    now = until(lambda: max(lab.gate.generation() - generation, 0), RELOAD_SECONDS) + generation
    saw(now > generation, f"generation {generation}, now {now}")
    steady = spoken(lab.plain.ask("again", key=STEADY))
    saw(steady == ALLOWED, f"a connection lives on: {steady}")
    for address in (SERVER, SERVER6):
        answer = lab.curl(ALLOWED, address)
        saw(answer == ALLOWED, f"anew: {answer}")


def _calls(lab: Lab, port: int) -> str:
    """Let the neighbour call a port that somebody listens at; return the key of the call."""
    key = f"inbound {port}"
    lab.plain.ask("listen", port=port)
    lab.server.ask("call", key=key, address=CLIENT, port=port, source=NEIGHBOUR)
    return key


def _state(lab: Lab, key: str) -> str:
    return str(lab.server.ask("called", key=key)["state"])


def _logged(lab: Lab, **wanted: Any) -> list[Entry]:
    """Wait for entries with these properties."""
    return until(lambda: [each for each in lab.gate.entries() if wanted.items() <= _properties(each, wanted).items()])


def _properties(entry: Entry, names: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in names}


def _served(lab: Lab, saw: Sight) -> None:
    key = _calls(lab, INBOUND_PORT)
    accepted = until(lambda: lab.plain.ask("accepted", port=INBOUND_PORT)["peers"])
    saw(accepted == [NEIGHBOUR] and _state(lab, key) == "connected", f"port {INBOUND_PORT}: {_state(lab, key)}")
    key = _calls(lab, CLOSED_PORT)
    logged = _logged(lab, direction="ingress", source=NEIGHBOUR, port=CLOSED_PORT, verdict="deny")
    words = f"{logged[0].verdict} of {logged[0].source} by {', '.join(logged[0].rules)}" if logged else "nothing"
    saw(bool(logged), f"port {CLOSED_PORT}: in the log {words}")
    heard = lab.plain.ask("accepted", port=CLOSED_PORT)["peers"]
    saw(_state(lab, key) == "pending" and not heard, f"its call is {_state(lab, key)}")


def _answers(lab: Lab, saw: Sight) -> None:
    lab.server.ask("received", port=_SERVICE_PORT)
    lab.plain.ask("send", address=SERVER, port=_SERVICE_PORT, text="question", source_port=_ASKING_PORT)
    asked = _heard(lab.server, _SERVICE_PORT)
    saw(asked == ["question"], f"the server hears: {', '.join(asked) or 'nothing'}")
    lab.server.ask("send", address=CLIENT, port=_ASKING_PORT, text="answer", source_port=_SERVICE_PORT)
    heard = _heard(lab.plain, _ASKING_PORT)
    saw(heard == ["answer"], f"the client: {', '.join(heard) or 'nothing'}")
    lab.server.ask("send", address=CLIENT, port=_ASKING_PORT, text="from a stranger")
    logged = _logged(lab, direction="ingress", source=SERVER, port=_ASKING_PORT, verdict="deny")
    more = lab.plain.ask("received", port=_ASKING_PORT)["datagrams"]
    saw(bool(logged) and not more, f"a stranger: {logged[0].verdict if logged else 'nothing'} in the log")


def _heard(remote: Remote, port: int) -> list[str]:
    """Wait for datagrams; return what they said."""
    return [text for *_, text in until(lambda: remote.ask("received", port=port)["datagrams"])]


def _rejected(lab: Lab, saw: Sight) -> None:
    by_python, by_curl = REJECTED_SERVICES
    for label, address, at in (("IPv4", SERVER, SERVER), ("IPv6", SERVER6, f"[{SERVER6}]")):
        for port in REJECTED_SERVICES:
            lab.arrived(address, port)
        answer = lab.python(ALLOWED, address, port=by_python)
        saw(answer == "ECONNREFUSED at connect", f"{label}: Python {answer}")
        ended = lab.place.run([lab.curl_path, "--verbose", "--max-time", "8", f"http://{at}:{by_curl}/"])
        heard = "Connection refused" in ended.err
        saw(ended.code == _COULD_NOT_CONNECT and heard, f"curl {ended.code}{', refused' if heard else ''}")
        again = lab.python(ALLOWED, address, port=by_python)
        saw(again == "EPERM at connect", f"again: {again}")
        silent = all(lab.arrived(address, port).silence for port in REJECTED_SERVICES)
        saw(silent, "no SYN arrived" if silent else "something arrived")
    logged = _logged(lab, port=by_curl, verdict="reject")
    saw(bool(logged) and logged[0].exe == lab.curl_path, f"in the log: {logged[0].exe if logged else 'nothing'}")


def _rejected_peer(lab: Lab, saw: Sight) -> None:
    key = _calls(lab, REJECTED_PORT)
    until(lambda: _state(lab, key) != "pending")
    state = _state(lab, key)
    heard = lab.plain.ask("accepted", port=REJECTED_PORT)["peers"]
    saw(state == "ECONNREFUSED" and not heard, f"its call: {state}")
    logged = _logged(lab, direction="ingress", source=NEIGHBOUR, port=REJECTED_PORT, verdict="reject")
    saw(bool(logged), f"in the log: {logged[0].verdict} of {logged[0].source}" if logged else "in the log: nothing")


SCENARIOS = (
    Scenario("the policy begins to judge what comes in", "a new generation; what is open lives on", _widened),
    Scenario("what is served is reached, nothing else", "connected; a call without an answer, in the log", _served),
    Scenario("an answer to what left comes in", "the answer, and no stranger's datagram", _answers),
    Scenario("a local client is rejected", "ECONNREFUSED, then EPERM; nothing on the wire", _rejected),
    Scenario("a peer is rejected", "ECONNREFUSED at once, in the log", _rejected_peer),
)
