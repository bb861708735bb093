"""A real OPA server of our own: on loopback, with a random token, ended with the engine.

It listens on a port that the kernel chooses, and the port is read from the process's own sockets: a port chosen
beforehand could be taken by another program first, which would then receive the token and answer for OPA.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from engine.errors import EvaluatorError
from engine.policy.process import die_with_parent

START_TIMEOUT = 15.0
_LISTEN = "0A"
"""TCP_LISTEN in /proc/net/tcp."""

_AUTHORIZATION = """package system.authz

default allow := false

allow if input.identity == "{token}"
"""


class OpaServer:
    """A running `opa run --server`; `port` on 127.0.0.1, `token` for every request."""

    def __init__(self, process: subprocess.Popen[bytes], token: str) -> None:
        self._process = process
        self.token = token
        self.port = 0

    @classmethod
    async def start(cls, binary: str = "opa") -> OpaServer:
        """Start a server. Raises EvaluatorError when there is no usable opa."""
        found = find_program(binary)
        token = secrets.token_urlsafe(32)
        with tempfile.TemporaryDirectory(prefix="sallyport-opa-") as directory:
            policy = Path(directory) / "authz.rego"
            # The directory is 0700: nobody else reads the token, and after the start it is gone.
            policy.write_text(_AUTHORIZATION.format(token=token))
            server = cls(_spawn(found, policy), token)
            try:
                await server._listening()
            except BaseException:
                await asyncio.shield(server.stop())
                raise
        return server

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    async def _listening(self) -> None:
        deadline = asyncio.get_running_loop().time() + START_TIMEOUT
        while asyncio.get_running_loop().time() < deadline:
            if not self.running:
                raise EvaluatorError(
                    f"opa ended at once with status {self._process.returncode}", hint="try `opa run --server` by hand"
                )
            self.port = listening_port(self._process.pid)
            if self.port:
                return
            await asyncio.sleep(0.01)
        raise EvaluatorError(f"opa did not listen within {START_TIMEOUT:g} s", hint="try `opa run --server` by hand")

    async def stop(self) -> None:
        """End the server and reap it."""
        if self._process.poll() is None:
            self._process.kill()
        await asyncio.to_thread(self._process.wait)


def find_program(binary: str) -> str:
    """Return the path of opa: beside the engine's own Python, where `make setup` puts it, else from PATH.

    Raises EvaluatorError when there is none.
    """
    beside = str(Path(sys.executable).parent)
    found = shutil.which(binary, path=beside) or shutil.which(binary)
    if found is None:
        raise EvaluatorError(f"there is no program named {binary}", hint="install opa, or use --evaluator embedded")
    return found


def _spawn(binary: str, policy: Path) -> subprocess.Popen[bytes]:
    command = [
        *die_with_parent(), binary, "run", "--server", "--addr", "127.0.0.1:0", "--authentication", "token",
        "--authorization", "basic", "--log-level", "error", "--skip-version-check", str(policy),
    ]  # fmt: skip
    try:
        return subprocess.Popen(
            command,
            # No proxies, no OPA_* settings, nothing of the engine's secrets.
            env={"PATH": "/usr/bin:/bin", "HOME": "/", "GOMAXPROCS": str(min(4, os.cpu_count() or 1))},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise EvaluatorError(
            f"opa cannot be started: {error.strerror}", hint="check that the program can be run"
        ) from error


def listening_port(pid: int) -> int:
    """Return the TCP port on which a process of ours listens on IPv4 loopback, 0 while there is none."""
    inodes: set[str] = set()
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = str(descriptor.readlink())
            except FileNotFoundError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[len("socket:[") : -1])
        table = Path(f"/proc/{pid}/net/tcp").read_text()
    except OSError:
        return 0
    for row in table.splitlines()[1:]:
        columns = row.split()
        if len(columns) > 9 and columns[3] == _LISTEN and columns[9] in inodes:
            return int(columns[1].rpartition(":")[2], 16)
    return 0
