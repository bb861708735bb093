"""Every lint of the policy check: a body that it refuses, and one beside it that it lets pass."""

from __future__ import annotations

from typing import NamedTuple


class Lint(NamedTuple):
    """`message` is part of what is said about the refused body."""

    name: str
    refused: str
    message: str
    passes: str


WIDE = '{"dest", "exe", "host", "name", "clock", "hello"}'

LINTS = [
    Lint(
        "operand of not in an index",
        'deny contains "d" if not data.lists.ports[input.dest_missing]',
        "no fact input.dest_missing",
        'deny contains "d" if not data.lists.ports[input.dest.address]',
    ),
    Lint(
        "operand of not is a map entry",
        'deny contains "d" if not startswith(input.host.labels.env, "p")',
        "operand of `not` may be undefined",
        'deny contains "d" if not startswith(object.get(input.host.labels, "env", ""), "p")',
    ),
    Lint(
        "operand of not is a rule without default",
        'deny contains "d" if not env != "p"\nenv := "q" if input.dest.port == 1',
        "operand of `not` may be undefined",
        'deny contains "d" if not env != "p"\ndefault env := ""\nenv := "q" if input.dest.port == 1',
    ),
    Lint(
        "operand of not is a data entry by variable",
        'deny contains "d" if {\n\tsome k in ["a"]\n\tnot 1 in data.lists.ports[k]\n}',
        "operand of `not` may be undefined",
        'deny contains "d" if {\n\tsome k in ["a"]\n\tl := data.lists.ports[k]\n\tnot 1 in l\n}',
    ),
    Lint(
        "operand of not is an own function without default",
        'deny contains "d" if not f(input.dest.port) > 1\nf(x) := x if x > 3',
        "operand of `not` may be undefined",
        'deny contains "d" if not f(input.dest.port) > 1\ndefault f(_) := 0\nf(x) := x if x > 3',
    ),
    Lint(
        "operand of not is a partial built-in",
        'deny contains "d" if not max(input.hello.versions) == concat("", max(input.hello.alpn))',
        "operand of `not` may be undefined",
        'deny contains "d" if not count(input.hello.versions) == count(input.hello.alpn)',
    ),
    Lint(
        "not before braces",
        'deny contains "d" if not {input.dest.port == 1}',
        "`not` before braces",
        'deny contains "d" if not input.dest.port == 1',
    ),
    Lint(
        "walk with one argument",
        'deny contains "d" if [p, v] := walk(input.dest)',
        "walk with one argument",
        'deny contains "d" if {\n\twalk(input.dest, [p, v])\n\tv == 3\n}',
    ),
    Lint(
        "volatile built-in",
        'deny contains "d" if time.now_ns() > 3',
        "time.now_ns is volatile",
        'deny contains "d" if input.clock.hour > 3',
    ),
    Lint(
        "function that regorus lacks",
        'deny contains "d" if net.cidr_intersects("10.0.0.0/8", "10.1.0.0/16")',
        "no function named net.cidr_intersects",
        'deny contains "d" if net.cidr_contains("10.0.0.0/8", input.dest.address)',
    ),
    Lint(
        "unknown function in a body never reached",
        'deny contains "d" if {\n\tfalse\n\tnosuch(input.dest.port)\n}',
        "no function named nosuch",
        'deny contains "d" if {\n\tfalse\n\tcount(input.dest.address) > 1\n}',
    ),
    Lint(
        "number of arguments",
        'deny contains "d" if startswith(input.dest.address)',
        "startswith takes 2 arguments, not 1",
        'deny contains "d" if startswith(input.dest.address, "10.")',
    ),
    Lint(
        "unknown fact",
        'deny contains "d" if input.dset.port == 1',
        "no fact input.dset.port",
        'deny contains "d" if input.dest.port == 1',
    ),
    Lint(
        "unknown subfield",
        'deny contains "d" if input.dest.prot == 1',
        "no fact input.dest.prot",
        'deny contains "d" if input["dest"].port == 1',
    ),
    Lint(
        "below a plain field",
        'deny contains "d" if input.dest.port.high == 1',
        "no fact input.dest.port.high",
        'deny contains "d" if input.hello.alpn[_] == "h2"',
    ),
    Lint(
        "bare input",
        'deny contains "d" if count(input) > 3',
        "bare `input` in rule one",
        'deny contains "d" if count(input.dest) > 3',
    ),
    Lint(
        "bare input by a variable",
        'deny contains "d" if input[x].port == 1',
        "bare `input` in rule one",
        'deny contains "d" if input.dest[x] == 1',
    ),
    Lint(
        "fact outside the scope",
        'deny contains "d" if input.user.uid == 0',
        "its scope is",
        'deny contains "d" if input.exe.path == ""',
    ),
    Lint(
        "with outside tests",
        'deny contains "d" if helper with input as {}\nhelper if input.dest.port == 1',
        "`with` outside tests",
        'deny contains "d" if helper\nhelper if input.dest.port == 1',
    ),
    Lint(
        "unknown data",
        'deny contains "d" if input.dest.port in data.lists.prots',
        "no rule or data at data.lists.prots",
        'deny contains "d" if input.dest.port in data.lists.ports.a',
    ),
    Lint(
        "bare data", 'deny contains "d" if count(data) > 1', "bare `data`", 'deny contains "d" if count(data.lists) > 0'
    ),
    Lint(
        "float formats",
        'deny contains sprintf("%.2f", [input.dest.port])',
        "prints floats differently",
        'deny contains sprintf("%d", [input.dest.port])',
    ),
    Lint(
        "format that is no literal",
        "deny contains sprintf(data.lists.text, [1])",
        "format that is no literal",
        'deny contains sprintf("%v", [1])',
    ),
    Lint(
        "lower of a path",
        'deny contains "d" if lower(input.exe.path) == "a"',
        "letters beyond ASCII",
        'deny contains "d" if lower(input.name.value) == "a"',
    ),
    Lint(
        "to_number",
        'deny contains "d" if to_number(input.exe.path) == 1',
        "does not mean the same in both",
        'deny contains "d" if count(input.exe.path) == 1',
    ),
    Lint(
        "glob with an empty alternative",
        'deny contains "d" if glob.match("a{,b}", [], input.exe.path)',
        "empty alternative",
        'deny contains "d" if glob.match("a*", [], input.exe.path)',
    ),
    Lint(
        "membership with a key",
        'deny contains "d" if "a", "a" in {"a"}',
        "for sets",
        'deny contains "d" if "a" in {"a"}',
    ),
    Lint(
        "order of sets",
        'deny contains "d" if {\n\t{1} < {2}\n}',
        "order of sets",
        'deny contains "d" if {\n\t{1} != {2}\n}',
    ),
    Lint(
        "fractions",
        'deny contains "d" if input.dest.port / 2 == 1',
        "arithmetic on fractions",
        'deny contains "d" if input.dest.port % 2 == 1',
    ),
    Lint(
        "fraction literals",
        'deny contains "d" if input.dest.port + 0.5 > 1',
        "arithmetic on fractions",
        'deny contains "d" if input.dest.port + 1 > 1',
    ),
    Lint("vacuous", "helper if input.dest.port == 1", "neither denies nor allows anything", 'allow contains "a"'),
    Lint(
        "deny that is no set",
        "deny if input.dest.port == 1",
        "deny is no set of messages",
        'reject contains "r" if input.dest.port == 1',
    ),
    Lint(
        "target without its scope",
        'target if input.dest.port == 1\ndeny contains "d"',
        "no target_scope",
        'target_scope := {"dest"}\ntarget if input.dest.port == 1\ndeny contains "d"',
    ),
    Lint(
        "target_scope without a target",
        'target_scope := {"dest"}\ndeny contains "d"',
        "target_scope but no target",
        'target_scope := {"dest"}\ntarget := true\ndeny contains "d"',
    ),
    Lint(
        "target that reads beyond its scope",
        'target_scope := {"dest"}\ntarget if input.exe.path == "a"\ndeny contains "d"',
        "its target_scope is {dest}",
        'target_scope := {"exe"}\ntarget if input.exe.path == "a"\ndeny contains "d"',
    ),
    Lint(
        "target_scope beyond the scope",
        'target_scope := {"user"}\ntarget := true\ndeny contains "d"',
        "is not within its scope: user",
        'target_scope := {"name"}\ntarget := true\ndeny contains "d"',
    ),
    Lint("second scope", 'scope := {"exe"}\ndeny contains "d"', "a second scope", 'deny contains "d"'),
    Lint(
        "ttl that is no value", 'ttl contains 3\ndeny contains "d"', "ttl is no number", 'ttl := 3\ndeny contains "d"'
    ),
]
DATA = {"lists/ports.json": {"ports": {"a": [1]}, "text": "%v"}}
