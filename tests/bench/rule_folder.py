"""A policy of many rules as a host that grew for years may have: each a folder with its test, its list apart as data.

The same number gives the same bytes, so that two runs measure the same policy.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NAMES = """\
# Names of list {number} that nothing may connect to: a listed name and everything below it.
package sallyport.rules.{rule}

scope := {{"name"}}

deny contains message if {{
	some suffix in suffixes
	why := data.many.{rule}.suffixes[suffix]
	message := sprintf("%s is denied by the entry %s: %s", [input.name.value, suffix, why])
}}

suffixes contains suffix if {{
	labels := split(input.name.value, ".")
	some from, _ in labels
	suffix := concat(".", array.slice(labels, from, count(labels)))
}}
"""
_ADDRESSES = """\
# Addresses of list {number}, which only the listed units may reach.
package sallyport.rules.{rule}

scope := {{"cgroup", "dest"}}

target_scope := {{"dest"}}

default target := false

target if {{
	some prefix in data.many.{rule}.prefixes
	net.cidr_contains(prefix, input.dest.address)
}}

deny contains "list {number} is for listed units only" if {{
	not input.cgroup.unit in data.many.{rule}.units
}}
"""
_PROGRAMS = """\
# Program {number} may reach the names of its list alone.
package sallyport.rules.{rule}

scope := {{"exe", "name"}}

target_scope := {{"exe"}}

default target := false

target if input.exe.path == data.many.{rule}.path

deny contains sprintf("%s may not reach %s", [input.exe.path, input.name.value]) if {{
	not input.name.value in data.many.{rule}.names
}}
"""
_TEST = """\
package sallyport.rules.{rule}_test

import data.sallyport.rules.{rule}

test_what_is_meant_is_denied if {{
	count({rule}.deny) == 1 with input as {denied}
}}

test_the_rest_is_not if {{
	count({rule}.deny) == 0 with input as {passed}
}}
"""


@dataclass(frozen=True)
class _Kind:
    name: str
    text: str
    settings: dict[str, Any]
    denied: dict[str, Any]
    passed: dict[str, Any]


def _kind(number: int) -> _Kind:
    if number % 3 == 0:
        listed = {f"host{entry}.list{number}.example": f"reason {entry}" for entry in range(20)}
        return _Kind(
            "names", _NAMES, {"suffixes": listed}, {"name": {"value": f"a.host3.list{number}.example"}},
            {"name": {"value": "other.example"}},
        )  # fmt: skip
    if number % 3 == 1:
        prefixes = [f"10.{number % 250}.{entry}.0/24" for entry in range(10)]
        return _Kind(
            "addresses", _ADDRESSES, {"prefixes": prefixes, "units": [f"backup{number}.service"]},
            {"cgroup": {"unit": "other.service"}}, {"cgroup": {"unit": f"backup{number}.service"}},
        )  # fmt: skip
    path = f"/opt/program{number}/bin/program"
    return _Kind(
        "program", _PROGRAMS, {"path": path, "names": [f"api{entry}.service{number}.example" for entry in range(10)]},
        {"exe": {"path": path}, "name": {"value": "other.example"}},
        {"exe": {"path": path}, "name": {"value": f"api3.service{number}.example"}},
    )  # fmt: skip


FOLDER = "many"
"""Where the rules stand in the policy: their lists are below `data.many` therefore."""


def add(policy: Path, aside: Path, rules: int) -> Path:
    """Put the rules into a policy folder, all at once; return the file of the one in the middle, for `edit`. `aside`: a
    folder on the same file system, in which they are written first."""
    for number in range(rules):
        kind = _kind(number)
        rule = f"{kind.name}_{number}"
        here = aside / FOLDER / rule
        here.mkdir(parents=True)
        (here / f"{rule}.rego").write_text(kind.text.format(number=number, rule=rule))
        test = _TEST.format(rule=rule, denied=json.dumps(kind.denied), passed=json.dumps(kind.passed))
        (here / f"{rule}_test.rego").write_text(test)
        (here / "list.json").write_text(json.dumps(kind.settings))
    (aside / FOLDER).rename(policy / FOLDER)
    middle = f"names_{rules // 2 // 3 * 3}"
    return policy / FOLDER / middle / f"{middle}.rego"


def remove(policy: Path, aside: Path) -> None:
    """Take the rules away again, all at once."""
    (policy / FOLDER).rename(aside / FOLDER)
    shutil.rmtree(aside / FOLDER)


def edit(file: Path, revision: int) -> None:
    """Change what one rule says, as a person would: by another file in the place of the first."""
    text = file.read_text()
    start = text.index('sprintf("')
    end = text.index(" is denied", start)
    beside = file.with_suffix(".new")
    beside.write_text(f'{text[:start]}sprintf("%s (revision {revision}){text[end:]}')
    beside.replace(file)
