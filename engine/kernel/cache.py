"""Compiled programs kept in the state directory: a start after the first needs no compiler.

The file is one line, `sallyport kernel programs <sha256 of the rest>`, and a JSON document: what it was made for, the
compiler's own files, and the units. What was made for anything else is not used, nor is a file that somebody other than
the engine's user could have written. The digest finds damage, not forgery: whoever can write here can take the signing
key as well (docs/adr/0012-compiled-programs-are-kept.md).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.abi.numbers import ABI
from engine.kernel import compiler
from engine.kernel.objects import Unit, from_json, to_json
from engine.kernel.programs import PROGRAMS, SOURCES

NAME = "kernel-programs"
FORMAT = 1
"""Of the file and of what the loader makes of it: raised when either changes."""
_HEAD = b"sallyport kernel programs "
_MOST = 16 << 20
_HEADERS = ("include/uapi/linux/bpf.h", "include/uapi/linux/pkt_cls.h", "include/generated/utsrelease.h")
"""What tells one tree of kernel headers from another: the constants that the programs take from it, and its release."""


class NotUsableError(Exception):
    """There are no kept programs that this start can use. The message says why, as the end of a sentence."""


def purpose(sizes: dict[str, int], tree: Path | None) -> dict[str, str]:
    """Say what programs would be compiled for now: everything that decides what comes out, but the compiler itself."""
    tree = tree or Path("/lib/modules") / platform.release() / "build"
    return {
        "form": str(FORMAT),
        "map layout": str(ABI),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "compiler flags": " ".join(compiler.flags(sizes)),
        "kernel headers": _digest([tree / name for name in _HEADERS if (tree / name).exists()], tree),
        "C sources": _digest(sorted((*SOURCES.glob("*.c"), *SOURCES.glob("include/*.h"))), SOURCES),
    }


def _digest(files: Sequence[Path], folder: Path) -> str:
    whole = hashlib.sha256(str(folder).encode())
    for file in files:
        whole.update(f"\n{file.relative_to(folder)} {hashlib.sha256(file.read_bytes()).hexdigest()}".encode())
    return whole.hexdigest()


def tool_marks(tools: Sequence[str]) -> dict[str, str]:
    """Return what tells a version of each shared object from another: size, time, and its neighbours of that name.

    The neighbours because an upgrade may leave the old version beside the new one.
    """
    marks = {}
    for tool in tools:
        path = Path(tool)
        with contextlib.suppress(OSError):
            facts = path.stat()
            stem = path.name.partition(".so")[0]
            neighbours = sorted(name for name in os.listdir(path.parent) if name.startswith(stem))  # noqa: PTH208
            marks[tool] = f"{facts.st_size} {facts.st_mtime_ns} {' '.join(neighbours)}"
    return marks


def load(state_dir: Path, wanted: dict[str, str]) -> tuple[Unit, ...]:
    """Return the units that were kept for this purpose. Raises NotUsableError."""
    rest = _intact(_read(state_dir))
    try:
        document = json.loads(rest)
        made_for, tools = dict(document["purpose"]), dict(document["tools"])
        units = from_json(document["units"].encode())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise NotUsableError("what is kept has another form") from error
    for name, value in wanted.items():
        if made_for.get(name) != value:
            raise NotUsableError(f"what is kept was made for another {name}")
    if tool_marks(list(tools)) != tools:
        raise NotUsableError("what is kept was made by another compiler")
    if {code.name for unit in units for code in unit.programs} != {program.name for program in PROGRAMS}:
        raise NotUsableError("what is kept has other programs")
    return units


def _read(state_dir: Path) -> bytes:
    """Read the file, if nobody but the engine's user can have written it."""
    try:
        folder = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise NotUsableError("there is no state directory yet") from error
    try:
        _require_ours(os.fstat(folder), f"the directory {state_dir}")
        # Neither a link that somebody left, nor a pipe that nobody writes to.
        file = os.open(NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except FileNotFoundError as error:
        raise NotUsableError("nothing is kept yet") from error
    except OSError as error:
        raise NotUsableError(f"{state_dir / NAME} cannot be opened: {error.strerror}") from error
    finally:
        os.close(folder)
    with open(file, "rb") as opened:  # noqa: PTH123 - it is open already
        facts = os.fstat(file)
        if not stat.S_ISREG(facts.st_mode):
            raise NotUsableError(f"{state_dir / NAME} is no file")
        _require_ours(facts, f"{state_dir / NAME}")
        if facts.st_size > _MOST:
            raise NotUsableError(f"{state_dir / NAME} is too large")
        return opened.read(_MOST)


def _require_ours(facts: os.stat_result, what: str) -> None:
    if facts.st_uid != os.geteuid():
        raise NotUsableError(f"{what} belongs to user {facts.st_uid}")
    if facts.st_mode & 0o077:
        raise NotUsableError(f"{what} is open to others (mode {stat.S_IMODE(facts.st_mode):04o}): chmod go= {what}")


def _intact(data: bytes) -> bytes:
    head, _, rest = data.partition(b"\n")
    if head != _HEAD + hashlib.sha256(rest).hexdigest().encode():
        raise NotUsableError("what is kept is damaged")
    return rest


def store(state_dir: Path, made_for: dict[str, str], tools: Sequence[str], units: tuple[Unit, ...]) -> None:
    """Keep units, in place of what was kept before. Raises NotUsableError where they could not be used later, OSError.

    Written under another name and renamed, so that the name never stands for half of it. Without fsync: after a power
    cut the digest tells.
    """
    document: dict[str, Any] = {"purpose": made_for, "tools": tool_marks(tools), "units": to_json(units).decode()}
    rest = json.dumps(document).encode()
    folder = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _require_ours(os.fstat(folder), f"the directory {state_dir}")
        fresh = f"{NAME}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh, dir_fd=folder)
        file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
        with open(file, "wb") as opened:  # noqa: PTH123
            opened.write(_HEAD + hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest)
        os.rename(fresh, NAME, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)
