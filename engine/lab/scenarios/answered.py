"""Addresses judged by the names that DNS answered for them."""

from __future__ import annotations

from engine.lab.lab import Lab
from engine.lab.rules import ANSWERED_NAME
from engine.lab.scenario import Scenario, Sight
from engine.lab.topology import ANSWERED, RESOLVER, UNANSWERED


def _answered(lab: Lab, saw: Sight) -> None:
    lab.server.ask("resolve", address=RESOLVER, names={ANSWERED_NAME: ANSWERED})
    lab.arrived(ANSWERED)
    before = lab.python(ANSWERED_NAME, ANSWERED)
    saw(before != ANSWERED_NAME and lab.arrived(ANSWERED).silence, f"before anybody asked: {before}")
    found = lab.plain.ask("look_up", resolver=RESOLVER, name=ANSWERED_NAME)
    saw(found == {"address": ANSWERED}, f"looked up: {', '.join(found.values())}")
    after = lab.python(ANSWERED_NAME, ANSWERED)
    saw(after == ANSWERED_NAME, f"then Python: {after}")
    again = lab.curl(ANSWERED_NAME, ANSWERED)
    saw(again == ANSWERED_NAME, f"curl: {again}")
    lab.arrived(UNANSWERED)
    other = lab.python(ANSWERED_NAME, UNANSWERED)
    saw(other != ANSWERED_NAME and lab.arrived(UNANSWERED).silence, f"an address of no answer: {other}")


SCENARIOS = (Scenario("an address is allowed by the name DNS gave it", "refused, looked up, allowed", _answered),)
