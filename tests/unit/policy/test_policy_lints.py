"""Every lint with a policy that it must refuse, at the right place, and one beside it that it must let pass."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from engine.policy.check import Checked
from engine.policy.findings import Finding
from tests.support.policies import Write, rule, statically, write_folder


def errors_of(files: dict[str, Any], folder: Path) -> tuple[Finding, ...]:
    return statically(write_folder(folder, files))[1].errors


WIDE = '{"dest", "exe", "host", "name", "clock", "hello"}'

# (lint, a body it refuses, the message, a body beside it that passes)
LINES: list[tuple[str, str, str, str]] = [
    (
        "operand of not in an index",
        'deny contains "d" if not data.lists.ports[input.dest_missing]',
        "no fact input.dest_missing",
        'deny contains "d" if not data.lists.ports[input.dest.address]',
    ),
    (
        "operand of not is a map entry",
        'deny contains "d" if not startswith(input.host.labels.env, "p")',
        "operand of `not` may be undefined",
        'deny contains "d" if not startswith(object.get(input.host.labels, "env", ""), "p")',
    ),
    (
        "operand of not is a rule without default",
        'deny contains "d" if not env != "p"\nenv := "q" if input.dest.port == 1',
        "operand of `not` may be undefined",
        'deny contains "d" if not env != "p"\ndefault env := ""\nenv := "q" if input.dest.port == 1',
    ),
    (
        "operand of not is a data entry by variable",
        'deny contains "d" if {\n\tsome k in ["a"]\n\tnot 1 in data.lists.ports[k]\n}',
        "operand of `not` may be undefined",
        'deny contains "d" if {\n\tsome k in ["a"]\n\tl := data.lists.ports[k]\n\tnot 1 in l\n}',
    ),
    (
        "operand of not is an own function without default",
        'deny contains "d" if not f(input.dest.port) > 1\nf(x) := x if x > 3',
        "operand of `not` may be undefined",
        'deny contains "d" if not f(input.dest.port) > 1\ndefault f(_) := 0\nf(x) := x if x > 3',
    ),
    (
        "operand of not is a partial built-in",
        'deny contains "d" if not max(input.hello.versions) == concat("", max(input.hello.alpn))',
        "operand of `not` may be undefined",
        'deny contains "d" if not count(input.hello.versions) == count(input.hello.alpn)',
    ),
    (
        "not before braces",
        'deny contains "d" if not {input.dest.port == 1}',
        "`not` before braces",
        'deny contains "d" if not input.dest.port == 1',
    ),
    (
        "walk with one argument",
        'deny contains "d" if [p, v] := walk(input.dest)',
        "walk with one argument",
        'deny contains "d" if {\n\twalk(input.dest, [p, v])\n\tv == 3\n}',
    ),
    (
        "volatile built-in",
        'deny contains "d" if time.now_ns() > 3',
        "time.now_ns is volatile",
        'deny contains "d" if input.clock.hour > 3',
    ),
    (
        "function that regorus lacks",
        'deny contains "d" if net.cidr_intersects("10.0.0.0/8", "10.1.0.0/16")',
        "no function named net.cidr_intersects",
        'deny contains "d" if net.cidr_contains("10.0.0.0/8", input.dest.address)',
    ),
    (
        "unknown function in a body never reached",
        'deny contains "d" if {\n\tfalse\n\tnosuch(input.dest.port)\n}',
        "no function named nosuch",
        'deny contains "d" if {\n\tfalse\n\tcount(input.dest.address) > 1\n}',
    ),
    (
        "number of arguments",
        'deny contains "d" if startswith(input.dest.address)',
        "startswith takes 2 arguments, not 1",
        'deny contains "d" if startswith(input.dest.address, "10.")',
    ),
    (
        "unknown fact",
        'deny contains "d" if input.dset.port == 1',
        "no fact input.dset.port",
        'deny contains "d" if input.dest.port == 1',
    ),
    (
        "unknown subfield",
        'deny contains "d" if input.dest.prot == 1',
        "no fact input.dest.prot",
        'deny contains "d" if input["dest"].port == 1',
    ),
    (
        "below a plain field",
        'deny contains "d" if input.dest.port.high == 1',
        "no fact input.dest.port.high",
        'deny contains "d" if input.hello.alpn[_] == "h2"',
    ),
    (
        "bare input",
        'deny contains "d" if count(input) > 3',
        "bare `input` in rule one",
        'deny contains "d" if count(input.dest) > 3',
    ),
    (
        "bare input by a variable",
        'deny contains "d" if input[x].port == 1',
        "bare `input` in rule one",
        'deny contains "d" if input.dest[x] == 1',
    ),
    (
        "fact outside the scope",
        'deny contains "d" if input.user.uid == 0',
        "its scope is",
        'deny contains "d" if input.exe.path == ""',
    ),
    (
        "with outside tests",
        'deny contains "d" if helper with input as {}\nhelper if input.dest.port == 1',
        "`with` outside tests",
        'deny contains "d" if helper\nhelper if input.dest.port == 1',
    ),
    (
        "unknown data",
        'deny contains "d" if input.dest.port in data.lists.prots',
        "no rule or data at data.lists.prots",
        'deny contains "d" if input.dest.port in data.lists.ports.a',
    ),
    ("bare data", 'deny contains "d" if count(data) > 1', "bare `data`", 'deny contains "d" if count(data.lists) > 0'),
    (
        "float formats",
        'deny contains sprintf("%.2f", [input.dest.port])',
        "prints floats differently",
        'deny contains sprintf("%d", [input.dest.port])',
    ),
    (
        "format that is no literal",
        "deny contains sprintf(data.lists.text, [1])",
        "format that is no literal",
        'deny contains sprintf("%v", [1])',
    ),
    (
        "lower of a path",
        'deny contains "d" if lower(input.exe.path) == "a"',
        "letters beyond ASCII",
        'deny contains "d" if lower(input.name.value) == "a"',
    ),
    (
        "to_number",
        'deny contains "d" if to_number(input.exe.path) == 1',
        "does not mean the same in both",
        'deny contains "d" if count(input.exe.path) == 1',
    ),
    (
        "glob with an empty alternative",
        'deny contains "d" if glob.match("a{,b}", [], input.exe.path)',
        "empty alternative",
        'deny contains "d" if glob.match("a*", [], input.exe.path)',
    ),
    (
        "membership with a key",
        'deny contains "d" if "a", "a" in {"a"}',
        "for sets",
        'deny contains "d" if "a" in {"a"}',
    ),
    (
        "order of sets",
        'deny contains "d" if {\n\t{1} < {2}\n}',
        "order of sets",
        'deny contains "d" if {\n\t{1} != {2}\n}',
    ),
    (
        "fractions",
        'deny contains "d" if input.dest.port / 2 == 1',
        "arithmetic on fractions",
        'deny contains "d" if input.dest.port % 2 == 1',
    ),
    (
        "fraction literals",
        'deny contains "d" if input.dest.port + 0.5 > 1',
        "arithmetic on fractions",
        'deny contains "d" if input.dest.port + 1 > 1',
    ),
    ("vacuous", "helper if input.dest.port == 1", "neither denies nor allows anything", 'allow contains "a"'),
    (
        "deny that is no set",
        "deny if input.dest.port == 1",
        "deny is no set of messages",
        'reject contains "r" if input.dest.port == 1',
    ),
    (
        "target without its scope",
        'target if input.dest.port == 1\ndeny contains "d"',
        "no target_scope",
        'target_scope := {"dest"}\ntarget if input.dest.port == 1\ndeny contains "d"',
    ),
    (
        "target_scope without a target",
        'target_scope := {"dest"}\ndeny contains "d"',
        "target_scope but no target",
        'target_scope := {"dest"}\ntarget := true\ndeny contains "d"',
    ),
    (
        "target that reads beyond its scope",
        'target_scope := {"dest"}\ntarget if input.exe.path == "a"\ndeny contains "d"',
        "its target_scope is {dest}",
        'target_scope := {"exe"}\ntarget if input.exe.path == "a"\ndeny contains "d"',
    ),
    (
        "target_scope beyond the scope",
        'target_scope := {"user"}\ntarget := true\ndeny contains "d"',
        "is not within its scope: user",
        'target_scope := {"name"}\ntarget := true\ndeny contains "d"',
    ),
    ("second scope", 'scope := {"exe"}\ndeny contains "d"', "a second scope", 'deny contains "d"'),
    ("ttl that is no value", 'ttl contains 3\ndeny contains "d"', "ttl is no number", 'ttl := 3\ndeny contains "d"'),
]
DATA = {"lists/ports.json": {"ports": {"a": [1]}, "text": "%v"}}


@pytest.mark.parametrize(
    ("refused", "message"), [(line[1], line[2]) for line in LINES], ids=[line[0] for line in LINES]
)
def test_refused(refused: str, message: str, tmp_path: Path) -> None:
    found = errors_of({"one.rego": rule(refused, scope=WIDE), **DATA}, tmp_path)
    assert message in " | ".join(finding.message for finding in found)
    assert {finding.file for finding in found} == {"one.rego"}
    assert all(finding.line >= 1 and finding.col >= 1 and finding.mend for finding in found)


@pytest.mark.parametrize("passes", [line[3] for line in LINES], ids=[line[0] for line in LINES])
def test_the_right_way_passes(passes: str, tmp_path: Path) -> None:
    assert errors_of({"one.rego": rule(passes, scope=WIDE), **DATA}, tmp_path) == ()


@pytest.mark.parametrize(
    "scope", ["set()", '{"dest", "dest"}', '{"dst"}', '["dest"]', '{"dest"} if true', "data.lists.text"]
)
def test_an_unusable_scope_is_refused(scope: str, tmp_path: Path) -> None:
    found = errors_of({"one.rego": rule('deny contains "d"', scope=scope), **DATA}, tmp_path)
    assert "scope" in found[0].message
    assert (found[0].file, found[0].line) == ("one.rego", 3)


def test_a_missing_scope_is_refused(tmp_path: Path) -> None:
    found = errors_of({"one.rego": 'package sallyport.rules.one\n\ndeny contains "d"\n'}, tmp_path)
    assert [(f.file, f.line, f.message) for f in found] == [("one.rego", 1, "rule one declares no scope")]


def test_the_place_is_that_of_the_reading_reference(tmp_path: Path) -> None:
    body = 'deny contains "ä" if {\n\t"ö" != ""; input.user.uid == 0\n}'
    (found,) = errors_of({"one.rego": rule(body)}, tmp_path)
    assert (found.line, found.col) == (6, 13)
    assert found.mend == 'add "user" to its scope, or do not read it'


def test_a_fact_read_through_a_library_counts(tmp_path: Path) -> None:
    files = {
        "one.rego": (
            'package sallyport.rules.one\n\nimport data.lib.who\n\nscope := {"dest"}\n\ndeny contains "d" if who.root\n'
        ),
        "lib/who.rego": "package lib.who\n\nroot if input.user.uid == 0\n",
    }
    (found,) = errors_of(files, tmp_path)
    assert (found.file, found.line) == ("lib/who.rego", 3)
    assert "rule one reads input.user.uid" in found.message


def test_an_imported_fact_counts(tmp_path: Path) -> None:
    head = "package sallyport.rules.one\n\nimport input.user as who\n\n"
    body = head + 'scope := {"dest"}\n\ndeny contains "d" if who.uid == 0\n'
    (found,) = errors_of({"one.rego": body}, tmp_path)
    assert "reads input.user.uid" in found.message


def test_another_rules_package_is_not_read(tmp_path: Path) -> None:
    files = {
        "one.rego": rule('deny contains "d" if data.sallyport.rules.two.helper'),
        "two.rego": rule('deny contains "d" if helper\nhelper if input.dest.port == 1', name="two"),
    }
    (found,) = errors_of(files, tmp_path)
    assert "another rule's package" in found.message


def test_a_constant_of_another_rule_may_be_read(tmp_path: Path) -> None:
    files = {
        "one.rego": rule('deny contains "d" if input.dest.port in data.sallyport.rules.two.ports'),
        "two.rego": rule('deny contains "d" if input.dest.port in ports\nports := {1, 2}', name="two"),
    }
    assert errors_of(files, tmp_path) == ()


@pytest.mark.parametrize("data", [{"one": {"deny": ["x"]}}, {"one": 3}, {"one": {"deny": {"x": True}}}])
def test_data_at_a_rules_path_is_refused(data: object, tmp_path: Path) -> None:
    files = {"one.rego": rule('deny contains "d"'), "sallyport/rules/data.json": data}
    found = errors_of(files, tmp_path)
    assert found
    assert all("sallyport/rules/data.json has data at the path of the rule" in finding.message for finding in found)


def test_data_beside_a_rule_is_not_refused(tmp_path: Path) -> None:
    files = {"one.rego": rule('deny contains "d"'), "sallyport/rules/one/data.json": {"list": [1]}}
    assert errors_of(files, tmp_path) == ()


@pytest.mark.parametrize("keyword", ["not", "and", "or"])
def test_misread_keywords_are_refused(keyword: str, tmp_path: Path) -> None:
    body = rule('deny contains "d"').replace("scope", f"import future.keywords.{keyword}\n\nscope", 1)
    found = errors_of({"one.rego": body}, tmp_path)
    assert [finding.line for finding in found] == [3]


def test_a_long_line_is_refused_once_where_it_is(tmp_path: Path) -> None:
    body = rule(f'deny contains "{"x" * 1100}"')
    (found,) = errors_of({"one.rego": body}, tmp_path)
    assert (found.file, found.line, found.col) == ("one.rego", 5, 1025)


def test_every_broken_file_is_named(tmp_path: Path) -> None:
    files = {
        "one.rego": rule("deny contains if {"),
        "two.rego": rule('deny contains "d" if input.user.uid == 0', name="two"),
        "three.rego": "package sallyport.rules.three\nscope = = 1\n",
    }
    found = errors_of(files, tmp_path)
    assert {finding.file for finding in found} == {"one.rego", "two.rego", "three.rego"}
    assert ("three.rego", 2) in {(finding.file, finding.line) for finding in found}


def test_version_0_syntax_is_refused(tmp_path: Path) -> None:
    found = errors_of({"one.rego": rule('deny["d"] { input.dest.port == 1 }')}, tmp_path)
    assert (found[0].file, found[0].line) == ("one.rego", 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("package sallyport\n", "does not say its default"),
        ('package sallyport\n\ndefault_verdict := "maybe"\n', "no plain verdict"),
        ('package sallyport\n\ndefault_verdict := "allow" if data.x\n', "no plain verdict"),
        ('package sallyport\n\ndefault_verdict := "allow"\n\ndefault_verdict := "deny"\n', "a second default_verdict"),
        ('package sallyport\n\ndecision := "allow"\n', "not both"),
        (
            'package sallyport\n\ndefault_verdict := "allow"\n\nsource_deny contains input.dest.address\n',
            "source_deny reads input",
        ),
        ('package sallyport\n\ndefault_verdict := "allow"\n\nsource_deny := ["10.0.0.0/8"]\n', "source_deny is no set"),
    ],
)
def test_the_root_package_is_checked(text: str, message: str, tmp_path: Path) -> None:
    found = errors_of({"sallyport.rego": text, "one.rego": rule('deny contains "d"')}, tmp_path)
    assert message in " | ".join(finding.message for finding in found)


def test_a_missing_default_is_not_claimed_while_a_file_is_broken(tmp_path: Path) -> None:
    found = errors_of({"sallyport.rego": "package sallyport\n\ndefault_verdict = = 1\n"}, tmp_path)
    assert len(found) == 1


@pytest.mark.parametrize(
    "package", ["sallyport.rules", "sallyport.rules.a.b", "sallyport_host", "sallyport.rules.default"]
)
def test_packages_that_are_no_rule_are_refused(package: str, tmp_path: Path) -> None:
    found = errors_of({"one.rego": f'package {package}\n\nscope := {{"dest"}}\n\ndeny contains "d"\n'}, tmp_path)
    assert found


def test_recursion_is_a_warning(write: Write) -> None:
    checked = statically(write({"one.rego": rule('deny contains "d" if f(1)\nf(x) := f(x)')}))[1]
    assert checked.errors == ()
    assert [finding.line for finding in checked.findings if finding.warning] == [6]


def test_a_test_file_may_not_replace_a_rule(tmp_path: Path) -> None:
    files = {
        "one.rego": rule('deny contains "d" if helper\nhelper if input.dest.port == 1'),
        "one_test.rego": "package sallyport.rules.one\n\nhelper if true\n\ntest_deny if count(deny) == 1\n",
    }
    (found,) = errors_of(files, tmp_path)
    assert (found.file, found.line) == ("one_test.rego", 3)


def test_a_rule_knows_what_it_reads(write: Write) -> None:
    body = (
        'target_scope := {"dest"}\ntarget if input.dest.port in data.lists.ports.a\n'
        'deny contains "d" if input.exe.sha256 == ""\nreject contains "r" if count(input.hello) > 0\n'
        "ttl := input.clock.hour"
    )
    checked: Checked = statically(write({"one.rego": rule(body, scope=WIDE), **DATA}))[1]
    (found,) = checked.rules
    assert found.reads == {"dest.port", "exe.sha256", "hello", "clock.hour"}
    assert found.data == {"lists.ports.a"}
    assert {effect.value for effect in found.effects} == {"deny", "reject"}
    assert found.has_ttl
    assert found.reads_field("exe.sha256")
    assert not found.reads_field("exe.path")
    assert found.reads_field("hello.ja4")


def test_a_decision_reads_what_it_reads(write: Write) -> None:
    (found,) = statically(
        write({"sallyport.rego": 'package sallyport\n\ndecision := "deny" if input.dest.port == 1\n'})
    )[1].rules
    assert found.scope == {"dest"}
    (found,) = statically(write({"sallyport.rego": 'package sallyport\n\ndecision := "deny" if count(input) == 1\n'}))[
        1
    ].rules
    assert len(found.scope) == 14


def test_findings_are_one_line_each(tmp_path: Path) -> None:
    found = errors_of({"one.rego": rule("deny contains if {"), "two.rego": rule("x := f(1)", name="two")}, tmp_path)
    assert all(re.fullmatch(r"[a-z]+\.rego:\d+:\d+: .+", str(finding)) for finding in found)
