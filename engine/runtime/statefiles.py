"""What an engine leaves for the next one: which generation stands, and what the executable ids mean.

Both belong to pinned maps, so both are worthless after a boot: the boot's id tells.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from engine.errors import StateError
from engine.runtime.identity import ExeRecord

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Standing:
    """The generation that the kernel maps hold entries of."""

    boot: str
    number: int
    digest: str
    mode: str


def boot_id() -> str:
    return _BOOT_ID.read_text().strip()


class StateDir:
    """The engine's directory, mode 0700, and the lock that keeps it to one engine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(path / "engine.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(
                f"The state directory {path} cannot be used: {error.strerror}",
                hint="Give a directory that root can write with --state-dir.",
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise StateError(
                f"Another engine uses the state directory {path}",
                hint="Stop it, or give this one a directory of its own with --state-dir.",
            ) from error

    @property
    def control(self) -> Path:
        return self.path / "control.sock"

    @property
    def orders(self) -> Path:
        return self.path / "orders.json"

    def standing(self) -> Standing | None:
        """Return what the engine before left, None when there is nothing of this boot."""
        try:
            standing = msgspec.convert(self._read("generation.json"), Standing)
        except msgspec.ValidationError:
            return None
        return standing if standing.boot == boot_id() else None

    def write_standing(self, number: int, digest: str, mode: str) -> None:
        self._write("generation.json", json.dumps(asdict(Standing(boot_id(), number, digest, mode))))

    def executables(self) -> list[ExeRecord]:
        """Return the executables that ids in the maps stand for."""
        found = self._read("executables.json")
        if not isinstance(found, dict) or found.get("boot") != boot_id():
            return []
        try:
            return msgspec.convert(found.get("executables"), list[ExeRecord])
        except msgspec.ValidationError:
            return []

    def write_executables(self, records: list[ExeRecord]) -> None:
        listed = [
            {
                "id": record.id, "path": record.path, "dev": record.dev, "inode": record.inode,
                "mtime_ns": record.mtime_ns, "ctime_ns": record.ctime_ns,
            }
            for record in records
        ]  # fmt: skip
        self._write("executables.json", json.dumps({"boot": boot_id(), "executables": listed}))

    def _read(self, name: str) -> object:
        try:
            read: object = json.loads((self.path / name).read_text())
        except (OSError, ValueError):
            return None
        return read

    def _write(self, name: str, text: str) -> None:
        fresh = self.path / f"{name}.new"
        try:
            with fresh.open("w") as stream:
                stream.write(text + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            fresh.replace(self.path / name)
        except OSError as error:
            raise StateError(f"{self.path / name} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        os.close(self._lock)
