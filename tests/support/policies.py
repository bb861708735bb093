"""Builders for policy tests: folders written in place, and the static check without a child."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.policy.bundle import Bundle, read
from engine.policy.check import Checked, check
from engine.policy.interpreter import InterpreterError, parse

Write = Callable[[Mapping[str, Any]], Path]
"""The `write` fixture: files of a policy folder in, the folder out."""

DEFAULT = 'package sallyport\n\ndefault_verdict := "allow"\n'


def write_folder(folder: Path, files: Mapping[str, Any], *, default: str = DEFAULT) -> Path:
    """Write files of a policy folder: text as it stands, anything else as JSON; with a default if none is given."""
    for name, content in {"sallyport.rego": default, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def rule(body: str, *, name: str = "one", scope: str = '{"dest"}') -> str:
    """Return a rule's module."""
    return f"package sallyport.rules.{name}\n\nscope := {scope}\n\n{body}\n"


def stop(pid: int) -> None:
    """Stop a child of ours and wait until every thread of it stands."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


def statically(folder: Path) -> tuple[Bundle, Checked]:
    """Read and check a folder without evaluating it."""
    bundle = read(folder)
    trees: dict[str, tuple[bytes, str]] = {}
    for module in (*bundle.modules, *bundle.tests):
        try:
            trees[module.file] = parse(module.file, module.text), ""
        except InterpreterError as error:
            trees[module.file] = b"", str(error)
    return bundle, check(bundle, trees)
