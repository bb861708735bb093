"""A program in QEMU's place that speaks over the lines as a guest would."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_FAKE = """#!{python}
import base64, os, re, sys, threading, time
words = " ".join(sys.argv)
output, steps, findings = [int(fd) for fd in re.findall(r"socket,id=line\\d,fd=(\\d+)", words)]
monitor = int(re.search(r"socket,id=monitor,fd=(\\d+)", words)[1])
def say(fd, text):
    os.write(fd, text.encode())
{body}
"""


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A function that puts a program in QEMU's place; it returns the folder in which everything happens."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))

    def put(body: str) -> Path:
        program = tmp_path / "bin/qemu-system-x86_64"
        program.write_text(_FAKE.format(python=sys.executable, body=body))
        program.chmod(0o755)
        return tmp_path

    return put
