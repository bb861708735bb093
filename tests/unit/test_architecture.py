"""The arrows between the rooms of this codebase, held by reading every import.

A room is a folder or a module directly below engine/, and audit/ as a whole. An import counts wherever it stands: in
a function or under TYPE_CHECKING it ties two rooms together just the same.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "model": set(),
    "abi": {"model"},
    "protocols": {"model"},
    "policy": {"model"},
    "config": {"model"},
    "ports": {"abi", "model"},
    "alerts": {"model"},
    "kernel": {"ports", "abi", "model"},
    "runtime": {"policy", "ports", "abi", "protocols", "alerts", "config", "model", "audit"},
    # What puts runtime and kernel together; nobody but the command line starts it.
    "service": {"runtime", "kernel", "policy", "ports", "abi", "alerts", "config", "model", "audit"},
    # The lab runs the engine as a user would, by its command; the kernel's edge is for clearing away what a run left.
    "lab": {"kernel", "runtime", "abi", "model", "audit"},
    # The selftest builds on the lab's parts; its attempts speak to the kernel past Python, and seal QUIC packets.
    "selftest": {"lab", "kernel", "protocols", "runtime", "abi", "model", "audit"},
    "cli": {
        "abi",
        "alerts",
        "audit",
        "config",
        "kernel",
        "lab",
        "model",
        "policy",
        "ports",
        "protocols",
        "runtime",
        "selftest",
        "service",
    },
    # An auditor can take audit/ alone: it knows nothing of the engine, not even its errors.
    "audit": set(),
}
"""Room -> rooms that it may import. Every room of the engine may import itself and `errors` as well. `runtime` reaches
the kernel through `ports`, which speaks in the records of `abi` (values, no IO); `service` puts the two together."""

PART_OF = {"config_file": "config", "toml_table": "config"}
"""Modules beside a room's own that belong to it."""

LIBRARIES: dict[str, set[str]] = {
    "aiohttp": {"policy"},
    "bcc": {"kernel"},
    "cryptography": {"audit", "protocols", "selftest"},
    "ctypes": {"kernel"},
    "msgspec": {"abi", "alerts", "audit", "cli", "config", "kernel", "policy", "protocols", "runtime", "service"},
    "opa_client": {"policy"},
    "pyroute2": {"kernel"},
    "regorus": {"policy"},
    "tomli": {"config"},
    "watchdog": {"runtime"},
}
"""What is not the standard library, and the one member of it that reaches past Python -> rooms that may import it."""


# tomllib joined it with 3.11; on 3.10 a guarded import of it is still no library.
STDLIB = sys.stdlib_module_names | {"tomllib"}


def imports(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute dotted module) for every import in a module of `package`.

    `from a import b` yields `a.b`, since b may be a module; the room of `a.b` is then never wider than that of `a`.
    """
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name) for alias in node.names)
            case ast.ImportFrom():
                base = node.module or ""
                if node.level:
                    above = package.split(".")[: len(package.split(".")) - node.level + 1]
                    base = ".".join([*above, base] if base else above)
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
            case ast.Call(args=[ast.Constant(value=str(name)), *_]) if re.search(
                r"(^|\.)(import_module|__import__)$", ast.unparse(node.func)
            ):
                yield node.lineno, name


def room_of(module: str) -> str:
    """Return the room that a dotted module is in; empty for what is not ours."""
    parts = module.split(".")
    if parts[0] == "audit":
        return "audit"
    if parts[0] == "engine" and len(parts) > 1 and parts[1] != "__version__":
        return PART_OF.get(parts[1], parts[1])
    return ""


def wrongs(source: str, module: str) -> list[str]:
    """Return what the imports of a module's source do against the tables, one sentence each."""
    room = room_of(module)
    allowed = ARROWS[room] | {room} | ({"errors"} if room != "audit" else set())
    found = []
    for line, name in imports(source, module.rpartition(".")[0]):
        target, top = room_of(name), name.partition(".")[0]
        if target and target not in allowed:
            found.append(f"line {line}: {room} may not import {name}")
        elif not target and top == "engine" and name != "engine.__version__":
            found.append(f"line {line}: {name} is no room: import a module of one")
        elif not target and top == "engine":
            continue
        elif not target and top in LIBRARIES and room not in LIBRARIES[top]:
            found.append(f"line {line}: {room} may not use {top}")
        elif not target and top not in LIBRARIES and top not in STDLIB:
            found.append(f"line {line}: {top} has no row in LIBRARIES")
    return found


ENGINE_INIT = ROOT / "engine/__init__.py"
SOURCES = sorted({*(ROOT / "engine").rglob("*.py"), *(ROOT / "audit").rglob("*.py")} - {ENGINE_INIT})


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", SOURCES, ids=dotted)
def test_imports_follow_the_arrows(path: Path) -> None:
    module = dotted(path)
    assert room_of(module) in ARROWS, f"{module} is in a room without a row in ARROWS: give it one"
    assert wrongs(path.read_text(encoding="utf-8"), module) == []


def test_the_engine_s_own_package_imports_nothing() -> None:
    # Whatever engine/__init__.py imports, every room imports with it.
    assert list(imports(ENGINE_INIT.read_text(encoding="utf-8"), "engine")) == []


@pytest.mark.parametrize(
    ("module", "source", "words"),
    [
        ("engine.policy.rule", "from engine.kernel import maps", "policy may not import engine.kernel.maps"),
        ("engine.policy.rule", "def f():\n    import engine.runtime", "policy may not import engine.runtime"),
        ("engine.policy.rule", "from ..kernel.maps import Map", "policy may not import engine.kernel.maps.Map"),
        ("engine.policy.rule", "from .. import kernel", "policy may not import engine.kernel"),
        ("engine.model.net", "from engine import abi", "model may not import engine.abi"),
        ("engine.model.net", "import msgspec", "model may not use msgspec"),
        ("engine.runtime.hold", "import engine.kernel.hold as hold", "runtime may not import engine.kernel.hold"),
        ("engine.runtime.hold", "from ctypes import CDLL", "runtime may not use ctypes"),
        ("engine.cli.run", "import importlib\nimportlib.import_module('bcc')", "cli may not use bcc"),
        ("audit.verify", "from engine.errors import StateError", "audit may not import engine.errors.StateError"),
        ("engine.cli.run", "import engine", "engine is no room"),
        ("engine.cli.run", "import flask", "flask has no row"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str, words: str) -> None:
    assert [words in wrong for wrong in wrongs(source, module)] == [True]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("engine.kernel.maps", "import ctypes\nfrom engine.abi import records\nfrom engine.errors import KernelError"),
        ("engine.policy.check", "from . import syntax\nfrom .rule import Rule\nfrom engine.model import facts"),
        ("engine.runtime.decide", "import asyncio\nfrom audit.log import Log\nfrom engine.ports import Gate"),
        ("audit.log", "from audit import entry\nimport msgspec"),
    ],
)
def test_a_right_import_passes(module: str, source: str) -> None:
    assert wrongs(source, module) == []


def test_ruff_bans_what_only_the_kernel_room_may_use() -> None:
    # Two places say it: ruff while writing, this file with the exceptions counted.
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    banned = set(re.findall(r'^"(\w+)"\.msg = ', lines, re.MULTILINE))
    assert banned == {library for library, rooms in LIBRARIES.items() if rooms == {"kernel"}}
