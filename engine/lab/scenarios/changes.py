"""A policy that changes while traffic flows."""

from __future__ import annotations

from typing import Any

from engine.lab.lab import Lab, spoken
from engine.lab.log import Entry
from engine.lab.scenario import Scenario, Sight
from engine.lab.scenarios.names import ALLOWED
from engine.lab.waiting import until

LATER = "later.example"
STEADY = "steady"
"""The key of a connection to an allowed name, opened here and kept to the end."""
RELOAD_SECONDS = 120.0
_BROKEN = "package sallyport.rules.broken\n\nscope := {\n"


def _reload(lab: Lab, saw: Sight) -> None:
    opened = [lab.plain.ask("open", key=key, **lab.tls(name)) for key, name in ((STEADY, ALLOWED), (LATER, LATER))]
    saw(all("answer" in each for each in opened), "two connections: " + ", ".join(map(spoken, opened)))
    generation = lab.gate.generation()
    lab.policy.put("denied_names", suffixes={LATER: "from now on"})
    # Cut, not merely stopped: the connection that is now denied gets an error of its own.
    cut: dict[str, Any] = {}

    def is_cut() -> bool:
        cut.update(lab.plain.ask("again", key=LATER))
        return "error" in cut

    until(is_cut, RELOAD_SECONDS)
    saw("error" in cut, f"one is cut: {cut.get('error', 'no')}")
    # Flows are cut before the drop takes force, so that they hear of it; what begins in between is cut a moment later.
    now = until(lambda: max(lab.gate.generation() - generation, 0)) + generation
    saw(now > generation, f"generation {generation}, now {now}")
    lab.arrived()
    answer = lab.python(LATER)
    arrived = lab.arrived()
    saw(answer != LATER and arrived.nothing, f"anew: {answer}, {arrived.bytes} bytes arrived")
    other = spoken(lab.plain.ask("again", key=STEADY))
    saw(other == ALLOWED, f"the other lives on: {other}")


def _broken(lab: Lab, saw: Sight) -> None:
    generation = lab.gate.generation()
    alerts = len(_alerts(lab))
    rule = lab.policy.folder / "rules" / "broken" / "broken.rego"
    rule.parent.mkdir()
    rule.write_text(_BROKEN)
    raised = until(lambda: len(_alerts(lab)) > alerts, RELOAD_SECONDS)
    saw(raised, "an alert" if raised else "no alert")
    for name, may in ((ALLOWED, True), (LATER, False)):
        answer = lab.curl(name)
        saw((answer == name) is may, f"{name}: {answer}")
    steady = spoken(lab.plain.ask("again", key=STEADY))
    saw(steady == ALLOWED, f"the connection lives on: {steady}")
    now = lab.gate.generation()
    saw(now == generation, f"still generation {now}")
    rule.unlink()
    rule.parent.rmdir()


def _alerts(lab: Lab) -> list[Entry]:
    return [each for each in lab.gate.entries() if each.type == "alert" and "policy" in str(each.members)]


SCENARIOS = (
    Scenario("a reload flips a verdict under way", "the connection is cut, a new one refused, others live", _reload),
    Scenario("a broken policy changes nothing", "an alert; the same generation, the same verdicts", _broken),
)
