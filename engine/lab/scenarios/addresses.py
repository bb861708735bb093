"""Addresses, control groups, datagrams: what is decided before any name is seen, or beside it."""

from __future__ import annotations

from functools import partial

from engine.abi.numbers import Counter
from engine.lab.gate import Since
from engine.lab.lab import Lab, spoken
from engine.lab.rules import FLOOD_SYNS, INBOUND_PORT, SCAN_PORTS
from engine.lab.scenario import Scenario, Sight
from engine.lab.scenarios.names import ALLOWED, DENIED_NAME
from engine.lab.servers import PLAIN_PORT
from engine.lab.topology import (
    CLIENT,
    DENIED,
    DENIED6,
    DENIED_SOURCE,
    FLOODER,
    METADATA,
    NEIGHBOUR,
    SCANNER,
    SERVER,
    SERVER6,
)
from engine.lab.waiting import until

_DATAGRAM_PORT = 7001
_FLOODED_PORT = 7006
_SCANNED = range(7100, 7100 + SCAN_PORTS + 8)
"""Few that stay unanswered: they go on trying, and after the block they are not to be the next scan."""


def _denied_address(lab: Lab, saw: Sight) -> None:
    for label, address in (("IPv4", DENIED), ("IPv6", DENIED6)):
        lab.arrived(address)
        since = Since(lab.gate)
        first = lab.python(ALLOWED, address)
        second = lab.python(ALLOWED, address)
        saw(first != ALLOWED, f"{label}: first {first}")
        saw(second == "EPERM at connect", f"then {second}")
        saw(lab.arrived(address).nothing, "0 bytes arrived")
        refused = since.grown(Counter.REFUSED_CONNECT)
        saw(refused >= 1, f"refused_connect +{refused}")


def _datagrams(lab: Lab, saw: Sight) -> None:
    for label, good, bad in (("IPv4", SERVER, DENIED), ("IPv6", SERVER6, DENIED6)):
        answer = _send(lab, good)
        arrived = until(partial(_arrived, lab, good))
        saw(not answer and arrived > 0, f"{label}: allowed, {arrived} bytes arrived")
        first = _send(lab, bad)
        then = until(partial(_send, lab, bad))
        saw(then == "EPERM", f"denied: first {first or 'taken'}, then {then or 'taken'}")
        saw(lab.arrived(bad, _DATAGRAM_PORT).nothing, "0 bytes arrived")


def _send(lab: Lab, address: str) -> str:
    """Send a datagram; return the error's name, or nothing."""
    return str(lab.plain.ask("send", address=address, port=_DATAGRAM_PORT, text="datagram").get("error", ""))


def _arrived(lab: Lab, address: str) -> int:
    return lab.arrived(address, _DATAGRAM_PORT).bytes


def _source(lab: Lab, saw: Sight) -> None:
    lab.plain.ask("listen", port=INBOUND_PORT)
    lab.server.ask("call", key="neighbour", address=CLIENT, port=INBOUND_PORT, source=NEIGHBOUR)
    accepted = until(lambda: lab.plain.ask("accepted", port=INBOUND_PORT)["peers"])
    saw(accepted == [NEIGHBOUR], f"a neighbour gets through: {', '.join(accepted) or 'no'}")
    since = Since(lab.gate)
    lab.server.ask("call", key="denied", address=CLIENT, port=INBOUND_PORT, source=DENIED_SOURCE)
    dropped = since.grows(Counter.DROPPED_SOURCE)
    state = lab.server.ask("called", key="denied")["state"]
    saw(dropped >= 1, f"the denied source: dropped_source +{dropped}")
    saw(state == "pending" and not lab.plain.ask("accepted", port=INBOUND_PORT)["peers"], f"its call is {state}")


def _source_by_person(lab: Lab, saw: Sight) -> None:
    done = lab.gate.sallyport("verdict", "set", "--source", f"{NEIGHBOUR}/32", "deny", "--expires", "10m")
    saw(done.code == 0, f"set: exit {done.code} {done.last_words if done.code else ''}".strip())
    since = Since(lab.gate)
    lab.server.ask("call", key="set", address=CLIENT, port=INBOUND_PORT, source=NEIGHBOUR)
    dropped = since.grows(Counter.DROPPED_SOURCE)
    saw(dropped >= 1, f"dropped_source +{dropped}")
    lab.gate.sallyport("verdict", "clear", "--source", f"{NEIGHBOUR}/32")
    # The call is still under way: its SYN comes again within a second.
    accepted = until(lambda: lab.plain.ask("accepted", port=INBOUND_PORT)["peers"])
    saw(accepted == [NEIGHBOUR], f"cleared: {', '.join(accepted) or 'nobody'} gets through")


def _scan(lab: Lab, saw: Sight) -> None:
    for port in _SCANNED:
        lab.server.ask("call", key=f"scan {port}", address=CLIENT, port=port, source=SCANNER)
    states = [lab.server.ask("called", key=f"scan {port}")["state"] for port in _SCANNED]
    refused, silent = states.count("ECONNREFUSED"), states.count("pending")
    saw(SCAN_PORTS <= refused + 1 < len(states) and refused + silent == len(states), f"{refused} answers, then silence")
    blocks = until(lambda: lab.gate.status()["sources"]["blocks"])
    saw([(block["source"], block["cause"]) for block in blocks] == [(SCANNER, "scan")], f"{len(blocks)} source blocked")
    told = until(lambda: [each for each in lab.gate.entries() if each.detail.get("rule") == "scan_limit"])
    saw(len(told) == 1, f"{len(told)} alert in the log")
    lab.gate.sallyport("verdict", "clear", "--source", SCANNER)
    lab.server.ask("call", key="after", address=CLIENT, port=INBOUND_PORT, source=SCANNER)
    accepted = until(lambda: lab.plain.ask("accepted", port=INBOUND_PORT)["peers"])
    saw(accepted == [SCANNER], f"cleared: {', '.join(accepted) or 'nobody'} gets through")


def _flood(lab: Lab, saw: Sight) -> None:
    lab.plain.ask("listen", port=_FLOODED_PORT)
    # All at once: whoever is refused does not try again, so that what was blocked is told once.
    sent = lab.server.ask("volley", address=CLIENT, ports=[_FLOODED_PORT] * 2 * FLOOD_SYNS, source=FLOODER)["calls"]
    told = until(lambda: [each for each in lab.gate.entries() if each.detail.get("rule") == "flood_limit"])
    of = told[0].detail if told else {}
    saw(len(told) == 1 and of.get("source") == FLOODER, f"{sent} calls: {len(told)} alert in the log")
    saw(of.get("syns") == FLOOD_SYNS, f"blocked at the SYN number {of.get('syns', 0)}")
    through = lab.plain.ask("accepted", port=_FLOODED_PORT)["peers"].count(FLOODER)
    saw(0 < through < FLOOD_SYNS, f"{through} got through")
    lab.server.ask("call", key="neighbour", address=CLIENT, port=_FLOODED_PORT, source=NEIGHBOUR)
    other = _accepted_from(lab, NEIGHBOUR)
    saw(other, f"a neighbour {'gets' if other else 'does not get'} through")
    lab.gate.sallyport("verdict", "clear", "--source", FLOODER)
    lab.server.ask("call", key="after", address=CLIENT, port=_FLOODED_PORT, source=FLOODER)
    after = _accepted_from(lab, FLOODER)
    saw(after, f"cleared: it {'gets' if after else 'does not get'} through")


def _accepted_from(lab: Lab, source: str) -> bool:
    """Wait for a call. There may be others: some of a flood have come half the way before it was blocked."""
    return until(lambda: source in lab.plain.ask("accepted", port=_FLOODED_PORT)["peers"])


def _ignored(lab: Lab, saw: Sight) -> None:
    group = "/" + str(lab.groups.ignored.relative_to(lab.plan.cgroup_mount))
    before = spoken(lab.ignored.ask("fetch", **lab.tls(DENIED_NAME)))
    saw(before != DENIED_NAME, f"before: {before}")
    done = lab.gate.sallyport("strategy", "set", "--cgroup", group, "ignore", "--expires", "10m")
    saw(done.code == 0, f"set: exit {done.code} {done.last_words if done.code else ''}".strip())
    answer = spoken(lab.ignored.ask("fetch", **lab.tls(DENIED_NAME)))
    saw(answer == DENIED_NAME, f"then: {answer}")
    marked = until(lambda: [each for each in lab.gate.entries() if each.ignored])
    saw(bool(marked), f"{len(marked)} marked ignored in the log")
    other = lab.python(DENIED_NAME)
    saw(other != DENIED_NAME, f"another group: {other}")
    lab.gate.sallyport("strategy", "clear", "--cgroup", group)
    after = spoken(lab.ignored.ask("fetch", **lab.tls(DENIED_NAME)))
    saw(after != DENIED_NAME, f"cleared: {after}")


def _metadata(lab: Lab, saw: Sight) -> None:
    url = f"http://{METADATA}:{PLAIN_PORT}/"
    words = [lab.curl_path, "--silent", "--show-error", "--max-time", "8", url]
    lab.arrived(METADATA, PLAIN_PORT)
    refused = lab.place.run(words)
    arrived = lab.arrived(METADATA, PLAIN_PORT)
    saw(refused.code != 0 and arrived.nothing, f"plain.service: curl {refused.code}, {arrived.bytes} bytes arrived")
    for _ in range(2):
        listed = lab.metadata_place.run(words)
        saw(listed.out.strip() == "metadata", f"metadata-agent.service: {listed.out.strip() or listed.last_words}")
    again = lab.place.run(words)
    saw(again.code != 0, f"plain.service again: curl {again.code}")


SCENARIOS = (
    Scenario("a denied address is refused", "cut while held, then EPERM from connect()", _denied_address),
    Scenario("a datagram to a denied address is dropped", "EPERM, 0 bytes on the wire", _datagrams),
    Scenario("a denied source is dropped at the device (XDP)", "dropped_source grows, no connection", _source),
    Scenario("a person's verdict on a source, set and cleared", "dropped, then through", _source_by_person),
    Scenario("a source that scans is blocked by the kernel", "answers end, one alert, lifted by hand", _scan),
    Scenario("a source that floods is blocked by the kernel", "others are not, one alert, lifted by hand", _flood),
    Scenario("an ignored control group passes", "it passes, and the log says ignored", _ignored),
    Scenario("cloud metadata is for its listed unit", "metadata-agent.service alone is answered", _metadata),
)
