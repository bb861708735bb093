"""Every lint with a policy that it must refuse, at the right place, and one beside it that it must let pass."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from engine.policy.check import Checked
from engine.policy.findings import Finding
from tests.support.lints import DATA, LINTS, WIDE, Lint
from tests.support.policies import Write, rule, statically, write_folder


def errors_of(files: dict[str, Any], folder: Path) -> tuple[Finding, ...]:
    return statically(write_folder(folder, files))[1].errors


@pytest.mark.parametrize("lint", LINTS, ids=lambda lint: lint.name)
def test_refused(lint: Lint, tmp_path: Path) -> None:
    found = errors_of({"one.rego": rule(lint.refused, scope=WIDE), **DATA}, tmp_path)
    assert lint.message in " | ".join(finding.message for finding in found)
    assert {finding.file for finding in found} == {"one.rego"}
    assert all(finding.line >= 1 and finding.col >= 1 and finding.mend for finding in found)


@pytest.mark.parametrize("lint", LINTS, ids=lambda lint: lint.name)
def test_the_right_way_passes(lint: Lint, tmp_path: Path) -> None:
    assert errors_of({"one.rego": rule(lint.passes, scope=WIDE), **DATA}, tmp_path) == ()


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


def test_a_folder_that_only_helps_has_no_rule(tmp_path: Path) -> None:
    found = errors_of({"sallyport.rego": "package lib.a\n\nx := 1\n"}, tmp_path)
    assert [finding.message for finding in found] == ["the policy has no rule", "the policy does not say its default"]


def test_brackets_that_the_parser_takes_hours_for_are_refused_at_once(tmp_path: Path) -> None:
    opened = 'x := "[[[[[[[[[[[[[[" # [[[[[[[[[[[[[[\ny := `{{{{{{{{{{{{{{`\n'
    fine = f"package a\n\n{opened}z := {'[' * 12}1{']' * 12}\n"
    deep = f"package a\n\n{opened}z := {'[' * 40}1{']' * 40}\n"
    _, checked = statically(write_folder(tmp_path / "fine", {"a.rego": fine, "one.rego": rule('deny contains "d"')}))
    assert checked.errors == ()
    _, checked = statically(write_folder(tmp_path / "deep", {"a.rego": deep, "one.rego": rule('deny contains "d"')}))
    (found,) = checked.errors
    assert (found.file, found.line, found.col) == ("a.rego", 5, 18)
    assert "nested more than 12 deep" in found.message
