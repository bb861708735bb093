"""The log's key pair on disk: made at first start, refused when others could read it."""

from __future__ import annotations

import os
import re
import secrets
import socket
import stat
from pathlib import Path

from audit.checkpoint import SigningKey, VerifierKey
from audit.errors import FormatError, KeyFileError

PRIVATE_NAME = "key"
PUBLIC_NAME = "key.pub"
_LARGEST = 4096


def default_origin() -> str:
    """Return a name for a new log: the host's, and 4 random bytes so that no two logs share one."""
    host = re.sub(r"[^A-Za-z0-9.-]+", "-", socket.gethostname()) or "host"
    return f"sallyport/{host}/{secrets.token_hex(4)}"


def create(folder: Path, origin: str) -> SigningKey:
    """Make the pair in `folder`. Raise KeyFileError when it cannot be written or is there already."""
    key = SigningKey.from_seed(origin, secrets.token_bytes(32))
    private = folder / PRIVATE_NAME
    if private.exists():
        raise KeyFileError(f"There is a key in {private} already.", hint="It signs the log: keep it.")
    # The public half first: a crash in between leaves a key.pub that the next try replaces, never a log that
    # is signed with a key nobody published.
    _write(folder / PUBLIC_NAME, f"{key.verifier}\n", 0o644)
    _write(private, key.private_text() + "\n", 0o600)
    return key


def _write(path: Path, text: str, mode: int) -> None:
    """Put a whole file in place: never readable half written, never wider than `mode`, durable."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(partial, flags, mode)
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(descriptor, mode)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise KeyFileError(
            f"The key file {path} cannot be written: {error.strerror}.",
            hint="Check the folder's free space and permissions.",
        ) from error


def load_private(folder: Path) -> SigningKey:
    """Read the private key. Raise KeyFileError unless it is a regular file of ours that only we can open."""
    path = folder / PRIVATE_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise KeyFileError(
            f"The private key {path} cannot be opened: {error.strerror}.",
            hint="Run as the user who owns the log, or restore the key from its backup.",
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError(f"The private key {path} is no regular file.", hint="Find out who put it there.")
        if status.st_uid != os.geteuid():
            raise KeyFileError(
                f"The private key {path} belongs to user {status.st_uid}, not to {os.geteuid()}.",
                hint="Run as its owner; if nobody can say why it changed hands, treat the key as stolen.",
            )
        if status.st_mode & 0o077:
            raise KeyFileError(
                f"The private key {path} has mode {stat.S_IMODE(status.st_mode):04o}: not private.",
                hint=f"If nobody read it: chmod 600 {path}. Else move the log aside, start anew.",
            )
        data = file.read(_LARGEST)
    try:
        return SigningKey.parse(_one_line(data))
    except FormatError as error:
        raise KeyFileError(
            f"The private key {path} is damaged: {error.message}", hint="Restore it from its backup."
        ) from error


def load_public(path: Path) -> VerifierKey:
    """Read a verifier key from a file. Raise KeyFileError."""
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST)
    except OSError as error:
        raise KeyFileError(
            f"The verifier key {path} cannot be read: {error.strerror}.",
            hint="Give the key with --key, or point --state-dir at the folder of an engine that has run.",
        ) from error
    try:
        return VerifierKey.parse(_one_line(data))
    except FormatError as error:
        raise KeyFileError(
            f"The verifier key {path} is damaged: {error.message}",
            hint="Take it from where it was published.",
        ) from error


def _one_line(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise FormatError("It is not UTF-8.") from error
    if not text.endswith("\n") or "\n" in text[:-1]:
        raise FormatError("It should be one line.")
    return text[:-1]
