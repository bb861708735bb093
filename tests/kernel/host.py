"""A host with the engine itself on it: started, stopped, killed and asked as a user would do it."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.lab.log import entries
from engine.lab.waiting import until
from engine.runtime.control import ask
from tests.kernel.lab import DEVICE, ROOT, Lab
from tests.support.netns import Namespace

PATIENCE = 180.0
"""Seconds until whatever is awaited of an engine on a busy machine counts as not coming."""
CLOSED, OPEN = 20000, 10000
"""Ports from these on, a thousand each: denied, and allowed. Below the ports that clients are given."""
POLICY = {
    "sallyport.rego": 'package sallyport\n\ndefault_verdict := "allow"\n',
    "rules/closed/closed.rego": (
        "package sallyport.rules.closed\n\n"
        'scope := {"dest"}\n\n'
        f'deny contains "closed port" if {{\n\tinput.dest.port >= {CLOSED}\n\tinput.dest.port < {CLOSED + 10000}\n}}\n'
    ),
}


def awaited(look: Callable[[], Any], otherwise: Callable[[], object]) -> Any:
    """Return the first true answer."""
    answer = until(look, PATIENCE)
    assert answer, otherwise()
    return answer


class Engine:
    """One run of `sallyport run`."""

    def __init__(
        self, host: Host, words: Sequence[str], before: Sequence[str], module: Sequence[str], root: Path
    ) -> None:
        self._host = host
        self.stderr = host.work / "engine.err"
        with self.stderr.open("ab") as stderr:
            self.process = subprocess.Popen(
                host.inside.command(*before, sys.executable, "-m", *module, "run", *words),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, cwd=root,
            )  # fmt: skip

    def ready(self) -> str:
        """Wait for the one line that says that everything is attached."""
        stdout = self.process.stdout
        assert stdout is not None
        assert select.select([stdout], [], [], PATIENCE)[0], self.told()
        line = stdout.readline().decode()
        assert line, f"the engine ended with {self.process.wait()}:\n{self.told()}"
        return line

    def told(self) -> str:
        """What all engines of this host have written to stderr: alerts among it."""
        return self.stderr.read_text(errors="replace")

    def lines(self, *words: str) -> list[str]:
        """Return the lines on stderr that hold all of these words."""
        return [line for line in self.told().splitlines() if all(word in line for word in words)]

    def tells(self, *words: str) -> str:
        """Wait for such a line."""
        return str(awaited(lambda: self.lines(*words), lambda: f"no line with {words}:\n{self.told()}")[0])

    def status(self) -> dict[str, Any]:
        return dict(ask(self._host.state, {"command": "status"}))

    def generation(self) -> int:
        """Return the number of the policy that is in force."""
        return int(self.status()["generation"]["number"])

    def child(self, word: str) -> int:
        """Return the process id of the child that has this word on its command line."""
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        for child in " ".join(path.read_text() for path in children).split():
            if word.encode() in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                return int(child)
        raise AssertionError(f"the engine has no child {word}")

    def pause(self) -> None:
        """Stop it, every thread of it."""
        os.kill(self.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        self.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()


class Host(Lab):
    """A lab with a policy, and engines over it one after the other."""

    def __init__(self, policy: dict[str, str] = POLICY) -> None:
        super().__init__()
        self.work = self.state / "work"
        self.work.mkdir()
        self.policy = self.work / "policy"
        self.write(policy)
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        assert self._engine is not None, "no engine was started"
        return self._engine

    def write(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = self.policy / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def begin(
        self, interfaces: Sequence[str] = (DEVICE,), config: str = "", *, before: Sequence[str] = (),
        leave_attached: bool = False, root: Path = ROOT, module: Sequence[str] = ("engine.cli.main",),
    ) -> Engine:  # fmt: skip
        """Start an engine and do not wait for it. `before`: a program that starts it; `root`: where its code is;
        `module`: what is run instead of the command, with its first words."""
        file = self.work / "config.toml"
        dns = "" if "[dns]" in config else "[dns]\nfrom_resolv_conf = false\n"
        file.write_text(f"{config}\n[alerts]\nwindow = 0\n{dns}")
        if self._engine is not None:
            self._engine.close()
        words = [
            "--interface", *interfaces, "--policy", str(self.policy), "--state-dir", str(self.state),
            "--mode", "enforce", "--cgroup", str(self.cgroup), "--config", str(file),
        ]  # fmt: skip
        if leave_attached:
            words.append("--leave-attached")
        self._engine = Engine(self, words, before, module, root)
        return self._engine

    def start(
        self, interfaces: Sequence[str] = (DEVICE,), config: str = "", *, leave_attached: bool = False,
        root: Path = ROOT, module: Sequence[str] = ("engine.cli.main",),
    ) -> Engine:  # fmt: skip
        """Start an engine; return once everything is attached."""
        engine = self.begin(interfaces, config, leave_attached=leave_attached, root=root, module=module)
        engine.ready()
        return engine

    def sallyport(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command outside of the namespaces, as an administrator would."""
        return subprocess.run(
            [sys.executable, "-m", "engine.cli.main", *words, "--state-dir", str(self.state)],
            capture_output=True, text=True, check=False, cwd=ROOT, timeout=PATIENCE,
        )  # fmt: skip

    def notes(self, kind: str) -> list[dict[str, Any]]:
        """Return the details of the entries of this type in the log, as far as it is on the disk."""
        return [entry.members["detail"] for entry in entries(self.state) if entry.type == kind]

    def filters(self, device: str) -> list[str]:
        """Return the names of the TC filters on a device."""
        found = []
        for parent in ("ingress", "egress"):
            shown = subprocess.run(
                ["tc", "-n", self.inside.name, "-json", "filter", "show", "dev", device, parent],
                capture_output=True, text=True, check=False,
            ).stdout  # fmt: skip
            listed = json.loads(shown or "[]")
            found += [each["options"]["bpf_name"] for each in listed if "bpf_name" in each.get("options", {})]
        return found

    def close(self) -> None:
        try:
            if self._engine is not None:
                self._engine.close()
        finally:
            super().close()


class Arrivals:
    """Every IPv4 packet for the closed ports that reaches a device from outside: what a gate let through."""

    # struct sock_filter: EtherType, who it is for, and the destination port of a header without options.
    _PROGRAM = (
        (0x28, 0, 0, 12), (0x15, 0, 6, 0x0800),
        (0x28, 0, 0, 0xFFFFF004), (0x15, 4, 0, 4),
        (0x28, 0, 0, 36), (0x35, 0, 2, CLOSED), (0x35, 1, 0, CLOSED + 10000),
        (0x06, 0, 0, 0x40000), (0x06, 0, 0, 0),
    )  # fmt: skip
    _SO_ATTACH_FILTER, _SOL_PACKET, _PACKET_STATISTICS, _SO_RCVBUFFORCE = 26, 263, 6, 33

    def __init__(self, space: Namespace, device: str) -> None:
        import ctypes

        code = b"".join(struct.pack("=HBBI", *each) for each in self._PROGRAM)
        self._code = ctypes.create_string_buffer(code, len(code))
        program = struct.pack("@HP", len(self._PROGRAM), ctypes.addressof(self._code))
        self._socket = space.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        self._socket.setsockopt(socket.SOL_SOCKET, self._SO_ATTACH_FILTER, program)
        self._socket.setsockopt(socket.SOL_SOCKET, self._SO_RCVBUFFORCE, 64 << 20)
        self._socket.bind((device, 3))
        self._socket.setblocking(False)

    def take(self) -> list[bytes]:
        """Return what has come since the last time. Fails where it missed any."""
        found = []
        while True:
            try:
                found.append(self._socket.recv(1 << 16))
            except BlockingIOError:
                break
        missed = struct.unpack("=II", self._socket.getsockopt(self._SOL_PACKET, self._PACKET_STATISTICS, 8))[1]
        assert not missed, "the capture lost frames: it proves nothing"
        return found

    def close(self) -> None:
        self._socket.close()
