"""A program in process and mount namespaces of its own: what it starts and mounts is gone when it is, however it ends.

Building a root tree runs package managers, which start others. Ending the first of them alone would leave the others at
work in a folder that is being removed, and what they mounted in it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import IO

from vagrant.vm.place import search_path

_LOOK_SECONDS = 0.1


def run(words: list[str], said: IO[bytes], environment: dict[str, str]) -> int:
    """Run it to its end; what it says goes to `said`. Returns its exit code. Needs root."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "--pid", "--fork",
         "--kill-child", "--mount-proc", *words],
        stdin=subprocess.DEVNULL, stdout=said, stderr=said, env={**environment, "PATH": search_path()},
    )  # fmt: skip
    try:
        return process.wait()
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The namespace's first process takes all others along, and is gone only when they are: so it is that one which is
    killed, and the one outside waits for it."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None:
        first = children.read_text().split() if children.exists() else []
        for pid in first:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        if not first:
            process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LOOK_SECONDS)
