"""The starter library: clean to OPA's own tools, its samples true in both evaluators, its documents in step."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest

from engine.errors import UsageError
from engine.model import facts as model
from engine.model.facts import ALL_FACTS, Clock, Dest, Direction, Event, Facts, Transport
from engine.policy import builtins
from engine.policy.embedded import EmbeddedEvaluator
from engine.policy.evaluator import Question
from engine.policy.evaluators import NAMES, factory
from engine.policy.interpreter import Interpreter, InterpreterError
from engine.policy.opa import OpaEvaluator
from engine.policy.opa_server import find_program
from engine.policy.prepare import Policy, prepare
from engine.policy.regotest import run_opa
from engine.policy.schema import LOCALITIES, SCHEMA, WEEKDAYS, json_schema

LIBRARY = Path(__file__).parents[3] / "policies"
DOCUMENT = Path(__file__).parents[3] / "docs" / "policy.md"
RULES = sorted(path.name for path in (LIBRARY / "rules").iterdir())


def opa(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [find_program("opa"), *words], cwd=LIBRARY.parent, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "words",
    [
        ("fmt", "--list", "policies"),
        ("check", "--strict", "policies"),
        ("check", "--strict", "--schema", "policies/schemas/input.json", "policies"),
        ("test", "--fail-on-empty", "policies"),
    ],
)
def test_opas_own_tools_have_nothing_to_say(words: tuple[str, ...]) -> None:
    run = opa(*words)
    assert run.returncode == 0, run.stdout + run.stderr
    assert words[0] == "test" or run.stdout == ""


def test_the_library_loads_without_a_warning_and_its_tests_pass_in_both() -> None:
    async def main() -> tuple[Policy, list[tuple[str, str]]]:
        policy = await prepare(LIBRARY, EmbeddedEvaluator)
        await policy.close()
        return policy, sorted((result.name, result.outcome) for result in await run_opa(LIBRARY))

    policy, by_opa = asyncio.run(main())
    assert policy.warnings == ()
    assert [rule.name for rule in policy.rules] == RULES
    assert sorted((result.name, result.outcome) for result in policy.tests) == by_opa
    assert {result.name.split(".")[2] for result in policy.tests} == {f"{name}_test" for name in RULES}


@pytest.mark.parametrize("make", [EmbeddedEvaluator, OpaEvaluator])
def test_every_sample_is_true(make: type[EmbeddedEvaluator] | type[OpaEvaluator]) -> None:
    samples = [
        (name, case, sample)
        for name in RULES
        for case, sample in json.loads((LIBRARY / "rules" / name / "samples" / "samples.json").read_text()).items()
    ]
    assert {name for name, _, _ in samples} == set(RULES)

    async def main() -> list[Any]:
        policy = await prepare(LIBRARY, lambda: make(timeout=10.0), run_tests=False)
        try:
            return list(
                await policy.evaluator.evaluate([Question(name, sample["input"]) for name, _, sample in samples])
            )
        finally:
            await policy.close()

    for (name, case, sample), answer in zip(samples, asyncio.run(main()), strict=True):
        expected = sample["expected"]
        assert answer.error == "", (name, case)
        assert answer.target == expected.get("target"), (name, case)
        # What the body says of a flow outside the target is for the rule's own tests; the engine does not ask.
        assert answer.deny == (() if answer.target is False else tuple(sorted(expected["deny"]))), (name, case)


def test_every_rule_has_its_folder() -> None:
    for name in RULES:
        folder = LIBRARY / "rules" / name
        assert {entry.name for entry in folder.iterdir()} == {f"{name}.rego", f"{name}_test.rego", "samples"}
        assert f"package sallyport.rules.{name}\n" in (folder / f"{name}.rego").read_text()
        assert f"`{name}`" in (LIBRARY / "README.md").read_text()


def test_the_schema_file_is_the_schema() -> None:
    assert json.loads((LIBRARY / "schemas" / "input.json").read_text()) == json_schema()


def test_the_schema_describes_the_facts() -> None:
    assert set(SCHEMA) == ALL_FACTS
    hints = get_type_hints(Facts)
    for fact, entry in SCHEMA.items():
        kind = hints[fact]
        if is_dataclass(kind):
            assert isinstance(entry, dict)
            assert list(entry) == [field.name for field in fields(kind)]
        else:
            assert not isinstance(entry, dict)
    clock = SCHEMA["clock"]
    assert isinstance(clock, dict)
    assert clock["weekday"].choices == WEEKDAYS
    assert set(LOCALITIES) == {"unspecified", "loopback", "multicast", "link_local", "private", "public"}


def test_a_complete_input_passes_the_schema(tmp_path: Path) -> None:
    flow = Facts(Event.CONNECT, Direction.EGRESS, Dest("192.0.2.1", 1, Transport.TCP, "public"), Clock(0, "monday"))
    document = tmp_path / "input.json"
    document.write_bytes(msgspec.json.encode(flow.document()))
    query = "json.match_schema(input, data.schemas)"
    run = opa("eval", "-f", "raw", "-d", "policies/schemas", "-i", str(document), query.replace("data.schemas", "data"))
    ok, errors = json.loads(run.stdout)
    assert (ok, errors) == (True, [])


def test_the_document_names_every_fact_and_subfield() -> None:
    text = DOCUMENT.read_text()
    for fact, entry in SCHEMA.items():
        assert f"`{fact}`" in text, fact
        for subfield in entry if isinstance(entry, dict) else ():
            assert f"`{subfield}`" in text, f"{fact}.{subfield}"
    for state in model.NameState:
        assert f"`{state.value}`" in text


def test_the_table_of_functions_is_that_of_the_installed_evaluators() -> None:
    by_opa = {
        entry["name"]: len(entry["decl"].get("args") or [])
        for entry in json.loads(opa("capabilities", "--current").stdout)["builtins"]
        if "infix" not in entry
    }
    assert all(by_opa[name] == count for name, count in builtins.ARITY.items())
    assert {
        entry["name"]
        for entry in json.loads(opa("capabilities", "--current").stdout)["builtins"]
        if entry.get("nondeterministic") and not entry["name"].startswith("json.")
    } <= builtins.VOLATILE
    in_both = set()
    for name, count in by_opa.items():
        # Called with too many arguments, a function that is there says how many it takes.
        call = f"package a\n\nx := {name}({', '.join(['1'] * (count + 3))})"
        try:
            Interpreter([("a.rego", call)], b"{}").value("data.a.x")
        except InterpreterError as error:
            if "could not find function" in str(error):
                continue
        in_both.add(name)
    # print takes any number of arguments.
    assert in_both == set(builtins.ARITY) | {"print"}
    assert set(builtins.DIFFERING) | builtins.PARTIAL | builtins.ASCII_ONLY <= in_both


@pytest.mark.parametrize("name", NAMES)
def test_evaluators_go_by_their_names(name: str) -> None:
    assert factory(name)().name == name


def test_another_evaluator_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no evaluator named wasm"):
        factory("wasm")


def test_the_engines_side_loads_neither_the_parser_nor_the_opa_client() -> None:
    # 6 MiB and 20 MiB of an engine that is to stay below 60.
    program = (
        "import sys, engine.policy.prepare, engine.policy.embedded, engine.policy.judge\n"
        "print(*sorted({'regorus', 'aiohttp', 'opa_client', 'engine.policy.syntax'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=LIBRARY.parent, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == ""
