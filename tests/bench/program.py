"""A program of this folder that answers lines with lines."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Sequence

from engine.lab.errors import LabError
from engine.lab.place import Place


class Program:
    def __init__(self, place: Place, words: Sequence[str]) -> None:
        self._words = " ".join(words)
        self._process = place.start(list(words), stderr=subprocess.PIPE)

    def ask(self, line: str, seconds: float = 30.0) -> str:
        """Write a line and return the one that comes back. LabError when none does."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(line.encode() + b"\n")
        stdin.flush()
        return self.hear(seconds)

    def hear(self, seconds: float = 30.0) -> str:
        stdout = self._process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], seconds)[0]:
            raise LabError(f"{self._words} did not answer within {seconds:g} s")
        answer = stdout.readline().decode(errors="replace").strip()
        if not answer:
            said = self._end()
            raise LabError(f"{self._words} ended: {said or 'it says nothing'}")
        return answer

    def _end(self) -> str:
        self._process.kill()
        return self._process.communicate()[1].decode(errors="replace").strip()

    def close(self) -> None:
        self._end()


def last_cpu() -> int:
    """The CPU that a measured thread is kept on: interrupts like the first one best."""
    return max(os.sched_getaffinity(0))
