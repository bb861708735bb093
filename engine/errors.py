"""The engine's errors: one closed family, each with its exit code.

The type is for code, the message for a person: one sentence that says what is wrong, and a hint that says what to
do next. Foreign exceptions (OSError, a library's own) are turned into one of these at the edge where they arise.
The table of exit codes in docs/operations.md is checked against this module by a test.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FINDING = 1
"""The command worked and found something: a failed check, a degraded engine, a broken log, a failed scenario."""


class SallyportError(Exception):
    """Base of the family. `exit_code` is what the command line ends with."""

    exit_code = 70

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def diagnostics(self) -> str:
        """Return the message and, on a second line, what to do next."""
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class UsageError(SallyportError):
    """The command's words are off."""

    exit_code = 2


class EngineAbsentError(SallyportError):
    """No engine answers for this state directory."""

    exit_code = 3


class PolicyError(SallyportError):
    """The policy cannot be loaded: every finding has file, line and column."""

    exit_code = 4


class PrivilegeError(SallyportError):
    """The process may not do what was asked."""

    exit_code = 5


class KernelError(SallyportError):
    """The kernel lacks a feature or refused a program, a map or an attachment."""

    exit_code = 6


class InterfaceError(SallyportError):
    """A network interface is missing or cannot carry the gate."""

    exit_code = 7


class StateError(SallyportError):
    """The state directory cannot be used: locked, unreadable, or the disk is full."""

    exit_code = 8


class EvaluatorError(SallyportError):
    """An evaluator did not answer, or answered with an error. The posture decides, never the absence of an answer."""

    exit_code = 9


class InputError(SallyportError):
    """A file given by the user cannot be read as what it should be."""

    exit_code = 10


class ConfigError(SallyportError):
    """The configuration is not usable."""

    exit_code = 11
