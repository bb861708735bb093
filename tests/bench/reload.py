"""From an edited file to the generation in force, with a thousand rules."""

from __future__ import annotations

import time

from engine.lab.errors import LabError
from tests.bench import rule_folder
from tests.bench.figures import Row, at_most, median
from tests.bench.site import Site

RULES = 1000
METHOD = (
    f"{RULES:,} rules beside the starter library, each a folder with its two tests and its list as data "
    "(tests/bench/rule_folder.py). One of them is replaced by another text that says something else; the clock runs "
    "from the rename to the new generation's number in the kernel's map, which is looked at every 0.2 ms. The time "
    "for which the folder must rest before it is read (0.1 s, settle) is excluded. Everything is on the way: reading "
    "all files, check, warm-up and tests of what changed, evaluator, flows in progress. ours: median; baseline: the "
    "first time, when all of the rules are new; spread: smallest and largest."
)
EDITS = 15
SETTLE = 0.1
_FIRST = 180.0
_EACH = 20.0
_LOOK = 0.0002


def measure(site: Site, rules: int = RULES, edits: int = EDITS) -> list[Row]:
    before = site.gate.generation()
    edited = rule_folder.add(site.policy, site.work, rules)
    began = time.monotonic()
    before = _moved(site, before, _FIRST)
    first = time.monotonic() - began - SETTLE
    took = []
    try:
        for revision in range(edits + 1):
            # Rested: what the switch before left to do (old entries go after 5 s) is not to be in the figure of this.
            time.sleep(0.7)
            began = time.monotonic()
            rule_folder.edit(edited, revision)
            before = _moved(site, before, _EACH)
            took.append(time.monotonic() - began - SETTLE)
    finally:
        rule_folder.remove(site.policy, site.work)
        _moved(site, before, _FIRST)
    took = took[1:]
    ours = median(took)
    name = f"reload of {rules:,} rules, one changed"
    return [
        Row(name, "ms", ours * 1e3, first * 1e3, ours / first, at_most(100.0), len(took),
            (min(took) * 1e3, max(took) * 1e3))
    ]  # fmt: skip


def _moved(site: Site, before: int, seconds: float) -> int:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        number = site.gate.generation()
        if number != before:
            return number
        time.sleep(_LOOK)
    raise LabError(f"No new generation within {seconds:g} s; the engine says:\n{site.gate.last_words()}")
