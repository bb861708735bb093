"""The audit log as scenarios look at it: audit/FORMAT.md says where it is and what stands in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DIRECTIONS = {1: "ingress", 2: "egress"}


@dataclass(frozen=True)
class Entry:
    """One line. `members` as it was written."""

    members: dict[str, Any]

    @property
    def type(self) -> str:
        return str(self.members["type"])

    @property
    def name(self) -> str:
        """The server name of the hello, empty when the entry is about none."""
        return str(self._body.get("dst_endpoint", {}).get("hostname", ""))

    @property
    def address(self) -> str:
        """The destination, empty when the entry is about none."""
        return str(self._body.get("dst_endpoint", {}).get("ip", ""))

    @property
    def port(self) -> int:
        """The destination's port, 0 when the entry is about none."""
        return int(self._body.get("dst_endpoint", {}).get("port", 0))

    @property
    def direction(self) -> str:
        """`ingress` or `egress`, empty when the entry is about no flow."""
        return _DIRECTIONS.get(self._body.get("connection_info", {}).get("direction_id"), "")

    @property
    def source(self) -> str:
        """The address that the flow comes from, empty when the entry is about none."""
        return str(self._body.get("src_endpoint", {}).get("ip", ""))

    @property
    def source_port(self) -> int:
        return int(self._body.get("src_endpoint", {}).get("port", 0))

    @property
    def exe(self) -> str:
        """The path of the executable, empty when it is not known."""
        return str(self._body.get("actor", {}).get("process", {}).get("file", {}).get("path", ""))

    @property
    def ech(self) -> bool:
        return bool(self._own.get("ech"))

    @property
    def rules(self) -> list[str]:
        """The rules that gave a reason."""
        return [str(reason["rule"]) for reason in self._own.get("reasons", [])]

    @property
    def ignored(self) -> bool:
        return bool(self._own.get("ignored"))

    @property
    def verdict(self) -> str:
        """What happened to the flow, empty when nothing was decided."""
        return str(self._own.get("verdict", ""))

    @property
    def would(self) -> str:
        """In observe mode the verdict that was not applied."""
        return str(self._own.get("would", ""))

    @property
    def detail(self) -> dict[str, Any]:
        """What an entry says that is about no flow and no process."""
        return dict(self.members.get("detail", {}))

    @property
    def _body(self) -> dict[str, Any]:
        return dict(self.members.get("ocsf", {}))

    @property
    def _own(self) -> dict[str, Any]:
        return dict(self._body.get("unmapped", {}))


def entries(state_dir: Path) -> Iterator[Entry]:
    """Every whole line of the log, while it is being written too."""
    for path in sorted((state_dir / "audit" / "log").glob("*.jsonl")):
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                yield Entry(json.loads(line))
