"""Where a program of the lab runs: in a network namespace and in a control group, from its first instruction on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TIMED_OUT = 124
"""What timeout(1) ends with."""
ROOT = Path(__file__).resolve().parents[2]
"""Where this very package stands: the engine that the lab tries is the one that it belongs to."""
# The shell joins the control group before it becomes the program, so no instruction of the program runs outside.
_JOIN = 'echo $$ >"$0/cgroup.procs" && exec "$@"'


def environment() -> dict[str, str]:
    """What the lab's programs see: no proxies, no locale, nothing of whoever started the lab."""
    kept = {
        "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin",
        "PYTHONPATH": str(ROOT),
        "LC_ALL": "C.UTF-8",
        "HOME": "/nonexistent",
    }
    if sys.flags.dont_write_bytecode:
        kept["PYTHONDONTWRITEBYTECODE"] = "1"
    return kept


@dataclass(frozen=True)
class Ended:
    """A program that ran: its exit code (TIMED_OUT when it had to be killed), what it wrote, seconds."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def last_words(self) -> str:
        """The last line that says something, for people; how it ended where there is none."""
        lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
        if lines:
            return lines[-1]
        ending = f" within {self.seconds:.0f} s" if self.code == TIMED_OUT else f", and ended with {self.code}"
        return f"it said nothing{ending}"


@dataclass(frozen=True)
class Place:
    """`namespace` is a file that stands for a network namespace (network_namespaces(7)); None: the lab's own.

    The lab's own tools have a place too: a lab that is killed while git or openssl is at work leaves them behind, and
    they would write on into a folder that the next run is taking away.
    """

    cgroup: Path
    namespace: Path | None = None

    def command(self, words: Sequence[str]) -> list[str]:
        enter = [] if self.namespace is None else ["nsenter", f"--net={self.namespace}", "--"]
        return ["sh", "-c", _JOIN, str(self.cgroup), *enter, *words]

    def start(self, words: Sequence[str], stderr: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Start a program with pipes for standard input and output."""
        # A session of its own: Ctrl-C is for the lab, which ends its programs in order.
        return subprocess.Popen(
            self.command(words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=environment(),
            start_new_session=True,
        )  # fmt: skip

    def run(self, words: Sequence[str], stdin: str = "", seconds: float = 60.0) -> Ended:
        """Run a program to its end, or to the end of its time."""
        began = time.monotonic()
        try:
            done = subprocess.run(
                self.command(words), input=stdin.encode(), capture_output=True, timeout=seconds, env=environment(),
                check=False, start_new_session=True,
            )  # fmt: skip
            code, out, err = done.returncode, done.stdout, done.stderr
        except subprocess.TimeoutExpired as error:
            code, out, err = TIMED_OUT, error.stdout or b"", error.stderr or b""
        return Ended(code, out.decode(errors="replace"), err.decode(errors="replace"), time.monotonic() - began)
