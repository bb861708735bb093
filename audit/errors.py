"""The audit log's errors: one closed family, each with its exit code.

What a verifier finds in a log is a value (`audit.verify.Finding`), never an exception: an exception here
means that the work could not be done at all.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FINDING = 1


class AuditError(Exception):
    """Base of the family. `exit_code` is what the command line ends with."""

    exit_code = 8

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def diagnostics(self) -> str:
        """Return the message and, on a second line, what to do next."""
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class RequestError(AuditError):
    """The caller asked for something that does not exist or is badly put."""

    exit_code = 2


class FormatError(AuditError):
    """Bytes that should be a key, a head, a proof or an entry are not, or not in the one canonical form."""


class KeyFileError(AuditError):
    """The key file is missing, unreadable, or open to others."""


class LockedError(AuditError):
    """Another writer holds the directory."""


class BrokenLogError(AuditError):
    """The log contradicts its own heads: nothing may be appended, or the new signature would cover the
    damage.
    """


class DiskError(AuditError):
    """Reading or writing failed: no space, no permission, an IO error."""
