"""What is wrong with a policy, and where: every finding has a place and a mend."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.errors import PolicyError


@dataclass(frozen=True, order=True)
class Finding:
    """`file` relative to the policy folder; `line` and `col` count from 1, 0 where the whole file is meant.

    `mend`: what to write instead. `warning`: worth a look, but the policy loads.
    """

    file: str
    line: int
    col: int
    message: str
    mend: str = ""
    warning: bool = False

    def __str__(self) -> str:
        kind = "warning: " if self.warning else ""
        return f"{self.file}:{self.line}:{self.col}: {kind}{self.message}"

    def document(self) -> dict[str, Any]:
        """Return the finding as JSON-ready values."""
        return asdict(self)


class PolicyRefusedError(PolicyError):
    """A policy folder that must not come into force; `findings` holds every reason that was found, sorted by place."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings: Sequence[Finding] = tuple(sorted(set(findings)))
        errors = [finding for finding in self.findings if not finding.warning]
        first = errors[0] if errors else None
        count = len(errors)
        message = f"the policy has {count} error{'' if count == 1 else 's'}"
        if first is not None:
            message += f", first {first}"
        super().__init__(message, hint=first.mend if first is not None else "")
