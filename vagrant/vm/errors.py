"""How the VM lab fails: one sentence that says what is wrong, a hint what to do next, and an exit code a cause."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator


class LabError(Exception):
    """Base of the family. The exit codes below 20 mean what they mean for `scripts/setup`."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(LabError):
    """Words that name no kernel, no system or no test."""

    exit_code = 2


class UnsupportedError(LabError):
    """This machine's processor is none that the kernels are for."""

    exit_code = 10


class RootError(LabError):
    """Building a root tree needs root; booting a machine does not."""

    exit_code = 11


class NetworkError(LabError):
    """The package archive cannot be reached, or does not have what was asked for."""

    exit_code = 12


class RoomError(LabError):
    """The disk is too full."""

    exit_code = 14


class PackageError(LabError):
    """A package manager or an image tool failed."""

    exit_code = 15


class ToolError(LabError):
    """A program that the lab runs is not installed."""

    exit_code = 20


class BootError(LabError):
    """The machine did not come to its first process."""

    exit_code = 21


class GuestError(LabError):
    """The guest came to its first process and gave up, for what the kernel has not: another try changes nothing."""

    exit_code = 23


class LateError(LabError):
    """The machine did not end within its time limit."""

    exit_code = 22


@contextlib.contextmanager
def only_our_errors() -> Iterator[None]:
    """The edge at which what the operating system refuses becomes one of the family."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise RoomError(
                f"The disk is full{where}.", hint="Make room; TMPDIR and XDG_CACHE_HOME name folders on another disk."
            ) from error
        raise LabError(
            f"The system refused something: {error.strerror or error}{where}.", hint="Mend that, then run it again."
        ) from error
