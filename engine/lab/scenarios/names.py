"""Names: what the gate does with a TLS connection by the name in its hello."""

from __future__ import annotations

from collections.abc import Callable

from engine.abi.numbers import Counter
from engine.lab.gate import Since
from engine.lab.lab import Lab, spoken
from engine.lab.scenario import Scenario, Sight
from engine.lab.servers import NAMES, PLAIN_PORT
from engine.lab.topology import DENIED, METADATA, SERVER, SERVER6
from engine.lab.waiting import until

ALLOWED, PROTECTED, DENIED_NAME, UNSEEN = "allowed.example", "protected.example", "www.denied.example", "unseen.example"


def _bare(lab: Lab, saw: Sight) -> None:
    """Without it, a client that never works would look like a gate that denies well."""
    answers = [lab.python(name, address) == name for name in NAMES for address in (SERVER, SERVER6)]
    saw(all(answers), f"{sum(answers)} of {len(answers)} answers by Python over IPv4 and IPv6")
    for way in (lab.curl, lab.openssl):
        answer = way(DENIED_NAME)
        saw(answer == DENIED_NAME, f"{way.__name__}: {answer}")
    answer = lab.python(ALLOWED, DENIED)
    saw(answer == ALLOWED, f"the denied address: {answer}")
    ended = lab.place.run(["curl", "-s", "--max-time", "5", f"http://{METADATA}:{PLAIN_PORT}/"])
    saw(ended.out.strip() == "metadata", f"the metadata address: {ended.out.strip()}")


BARE = (Scenario("without a gate every name answers", "all of them do", _bare, enforcing=False),)


def _unseen(lab: Lab, saw: Sight) -> None:
    lab.arrived(needle=UNSEEN)
    since = Since(lab.gate)
    answer = lab.curl(UNSEEN)
    saw(answer == UNSEEN, f"curl: {answer}")
    held = since.grown(Counter.HELD_PAYLOAD)
    saw(held == 1, f"{held} hello held")
    arrived = lab.arrived(needle=UNSEEN)
    saw(arrived.needle, f"then {arrived.bytes} bytes arrived")
    decided = until(lambda: [each for each in lab.gate.entries() if (each.type, each.name) == ("decision", UNSEEN)])
    saw(bool(decided), f"in the log: {len(decided)} decision, {', '.join(decided[0].rules) if decided else 'none'}")


def _known(lab: Lab, saw: Sight) -> None:
    since = Since(lab.gate)
    answer = lab.curl(UNSEEN)
    saw(answer == UNSEEN, f"curl: {answer}")
    hits, held = since.grown(Counter.HIT_NAME), since.grown(Counter.HELD_CONNECT, Counter.HELD_PAYLOAD)
    saw(hits == 1 and held == 0, f"hit_name +{hits}, held +{held}")


def _allowed(way: str) -> Callable[[Lab, Sight], None]:
    def play(lab: Lab, saw: Sight) -> None:
        for label, address in (("IPv4", SERVER), ("IPv6", SERVER6)):
            answer = getattr(lab, way)(ALLOWED, address)
            saw(answer == ALLOWED, f"{label}: {answer}")

    return play


def _denied(way: str) -> Callable[[Lab, Sight], None]:
    def play(lab: Lab, saw: Sight) -> None:
        for label, address in (("IPv4", SERVER), ("IPv6", SERVER6)):
            lab.arrived(address)
            answer = getattr(lab, way)(DENIED_NAME, address)
            saw(answer != DENIED_NAME, f"{label}: {answer}")
            arrived = lab.arrived(address)
            saw(arrived.nothing, f"{arrived.bytes} bytes arrived")

    return play


def _by_executable(lab: Lab, saw: Sight) -> None:
    # The one that may asks first and last: what it was told must not reach the ones that may not.
    for label, way, may in (
        ("curl", lab.curl, True), ("openssl", lab.openssl, False), ("Python", lab.python, False),
        ("curl again", lab.curl, True), ("openssl again", lab.openssl, False),
    ):  # fmt: skip
        lab.arrived()
        answer = way(PROTECTED)
        arrived = lab.arrived()
        saw((answer == PROTECTED) is may and (may or arrived.nothing), f"{label}: {answer}, {arrived.bytes} bytes")


def _pieces(name: str, *, may: bool) -> Callable[[Lab, Sight], None]:
    def play(lab: Lab, saw: Sight) -> None:
        for label, address in (("IPv4", SERVER), ("IPv6", SERVER6)):
            lab.arrived(address)
            answer = spoken(lab.plain.ask("fetch", **lab.tls(name, address), pieces=3))
            arrived = lab.arrived(address)
            saw((answer == name) is may, f"{label}: {answer}")
            if may:
                # Three of the hello, then the client's own end of the handshake and the request.
                saw(arrived.segments >= 3, f"{arrived.segments} segments arrived")
            else:
                saw(arrived.nothing, f"{arrived.bytes} bytes arrived")

    return play


_SIZES = (1500, 2300, 6000)
"""Bytes of padding: hellos of 1.8 KB, of more than 2,048 and of more than 4,096 bytes."""


def _long(lab: Lab, saw: Sight) -> None:
    for padding in _SIZES:
        for name, may in ((ALLOWED, True), (DENIED_NAME, False)):
            lab.arrived()
            answer = lab.plain.ask("fetch", **lab.tls(name), padding=padding)
            arrived = lab.arrived()
            text = spoken(answer)
            saw((text == name) is may and (may or arrived.nothing), f"{answer['hello']} bytes: {text}")


def _by_person(lab: Lab, saw: Sight) -> None:
    words = ("verdict", "set", "--name", UNSEEN, "deny", "--expires", "10m", "--reason", "the lab says so")
    done = lab.gate.sallyport(*words)
    saw(done.code == 0, f"set: exit {done.code} {done.last_words if done.code else ''}".strip())
    lab.arrived()
    answer = lab.curl(UNSEEN)
    arrived = lab.arrived()
    saw(answer != UNSEEN and arrived.nothing, f"then: {answer}, {arrived.bytes} bytes arrived")
    listed = lab.gate.sallyport("verdict", "list", "--json")
    saw(UNSEEN in listed.out, "it is listed" if UNSEEN in listed.out else f"not listed: {listed.out[:80]}")
    done = lab.gate.sallyport("verdict", "clear", "--name", UNSEEN)
    answer = lab.curl(UNSEEN)
    saw(done.code == 0 and answer == UNSEEN, f"cleared: {answer}")


SCENARIOS = (
    Scenario("an unseen name is decided by Rego while it is held", "one hello held, decided, released", _unseen),
    Scenario("the same name again, with no engine in between", "hit_name +1, held +0", _known),
    Scenario("an allowed name passes: curl", "it answers", _allowed("curl")),
    Scenario("an allowed name passes: openssl s_client", "it answers", _allowed("openssl")),
    Scenario("an allowed name passes: Python ssl", "it answers", _allowed("python")),
    Scenario("a denied suffix is refused: Python ssl", "refused, 0 bytes on the wire", _denied("python")),
    Scenario("a denied suffix is refused: curl", "refused, 0 bytes on the wire", _denied("curl")),
    Scenario("a denied suffix is refused: openssl s_client", "refused, 0 bytes on the wire", _denied("openssl")),
    Scenario("one name, by executable", f"{PROTECTED} answers curl alone, whoever asked before", _by_executable),
    Scenario("an allowed hello in three segments", "it answers", _pieces(ALLOWED, may=True)),
    Scenario("a denied hello in three segments", "refused, 0 bytes on the wire", _pieces(DENIED_NAME, may=False)),
    Scenario("hellos of 1.8 KB and more", "the allowed answer, the denied are refused with 0 bytes", _long),
    Scenario("a person's verdict on a name, set and cleared", "denied at once, then allowed at once", _by_person),
)
