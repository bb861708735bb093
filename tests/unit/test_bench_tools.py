"""What the benchmark rests on: its table finds its place, and the policy that it reloads is one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engine.policy.prepare import examine
from tests.bench import rule_folder
from tests.bench.figures import MARKS, Report, Row, at_least, at_most, write_table
from tests.support.policies import write_folder


def test_the_table_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    report = Report()
    report.add("so", [Row("bulk", "ns", 102.0, 100.0, 0.98, at_least(0.97, "ratio"), 3, (0.97, 0.99))])
    report.add("so", [Row("a|b", "ms", 120.0, goal=at_most(100.0)), Row("other", "Gbit/s", None, note="not installed")])
    document = tmp_path / "benchmarks.md"
    document.write_text(f"before\n\n{MARKS[0]}\n\n| old |\n\n{MARKS[1]}\nafter\n")
    for _ in range(2):
        write_table(document, report.markdown())
    assert document.read_text().splitlines() == [
        "before", "", MARKS[0], "",
        "| figure | ours | baseline | ratio | goal | met | n | spread |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
        "| bulk [ns] | 102 | 100 | 0.980 | ratio >= 0.97 | yes | 3 | 0.97 .. 0.99 |",
        "| a\\|b [ms] | 120 |  |  | ours <= 100 | MISS | 1 |  |",
        "| other [Gbit/s] | not installed |  |  |  |  | 1 |  |",
        "", MARKS[1], "after",
    ]  # fmt: skip


def test_a_document_without_a_place_is_left_alone(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text("nothing here\n")
    with pytest.raises(ValueError, match="no place"):
        write_table(document, "| new |")
    assert document.read_text() == "nothing here\n"


def test_the_reloaded_rules_are_a_policy_of_which_an_edit_changes_one(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "aside").mkdir()
    folder = write_folder(tmp_path / "policy", {})
    edited = rule_folder.add(folder, tmp_path / "aside", 7)
    first = asyncio.run(examine(folder))
    assert (len(first.rules), first.warnings) == (7, ())
    assert [test.outcome for test in first.tests] == ["pass"] * 14
    rule_folder.edit(edited, 1)
    second = asyncio.run(examine(folder))
    assert len({part.key for part in first.parts} - {part.key for part in second.parts}) == 1
    rule_folder.remove(folder, tmp_path / "aside")
    assert asyncio.run(examine(folder)).rules == ()
