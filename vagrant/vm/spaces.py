"""The two machines of a story as network namespaces of this one: what needs no power switch takes seconds here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from vagrant.vm.asking import ask
from vagrant.vm.errors import RootError, ToolError, UsageError
from vagrant.vm.pair import ADDRESSES
from vagrant.vm.place import require, search_path
from vagrant.vm.stories import Answer, Step

PREFIX = "vmstory"


class Spaces:
    """Two namespaces with a wire between them; the enforcer's programs stand in a control group of their own."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._work = Path()
        self._group = Path()
        self._path = f"{root / '.venv/bin'}:{search_path()}"
        self._names = {name: f"{PREFIX}-{os.getpid()}-{name}" for name in ADDRESSES}

    def __enter__(self) -> Spaces:
        if os.geteuid() != 0:
            raise RootError("Network namespaces need root.", hint="Run the command as root.")
        require(["ip", "nsenter"])
        if shutil.which("sallyport", path=self._path) is None:
            raise ToolError("The checkout is not set up.", hint="Run make setup first.")
        self._work = Path(tempfile.mkdtemp(prefix="sallyport-vm-"))
        self._group = _cgroup2() / f"{PREFIX}-{os.getpid()}"
        try:
            self._group.mkdir()
            enforcer, peer = self._names["enforcer"], self._names["peer"]
            _ip("netns", "add", enforcer)
            _ip("netns", "add", peer)
            _ip("link", "add", "eth0", "netns", enforcer, "type", "veth", "peer", "name", "eth0", "netns", peer)
            for name, address in ADDRESSES.items():
                for words in (("addr", "add", f"{address}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
                    _ip("-n", self._names[name], *words)
                _ip("-n", self._names[name], "link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """What a story left running is in one of the two namespaces, and goes with them."""
        for pid in _inside(self._names.values()):
            os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + 30
        while _inside(self._names.values()) and time.monotonic() < until:
            time.sleep(0.1)
        for pid in _inside(self._names.values()):
            os.kill(pid, signal.SIGKILL)
        for name in self._names.values():
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        while self._group.exists() and time.monotonic() < until + 10:
            try:
                self._group.rmdir()
            except OSError:
                time.sleep(0.1)
        shutil.rmtree(self._work, ignore_errors=True)

    def carry_out(self, step: Step) -> Answer:
        if step.actor == "operator":
            raise UsageError("There is no power switch in a namespace.", hint="Play this story in machines.")
        home = self._work / step.actor
        home.mkdir(exist_ok=True)
        group = self._group if step.actor == "enforcer" else self._group.parent
        words = [
            "sh", "-c", 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"', "sh", str(group),
            "nsenter", f"--net=/run/netns/{self._names[step.actor]}", "bash", "-c", step.command,
        ]  # fmt: skip
        return ask(step, words, home, {**os.environ, **self._environment(home)})

    def _environment(self, home: Path) -> dict[str, str]:
        return {
            "PATH": self._path,
            "STATE": str(home / "state"),
            "CGROUP": str(self._group),
            "CHECKOUT": str(self._root),
            "WIRE": "eth0",
            "PEER": ADDRESSES["peer"],
        }


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True, env={"PATH": search_path()})
    if done.returncode:
        raise ToolError(f"ip {' '.join(words)} failed.", hint=f"It said: {done.stderr.strip()}")


def _cgroup2() -> Path:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup2 " in line:
            return Path(line.split()[4])
    raise ToolError("There is no cgroup v2 mount.", hint="Mount one: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified.")


def _inside(names: Iterable[str]) -> list[int]:
    """The processes in the namespaces of these names."""
    found: list[int] = []
    for name in names:
        done = subprocess.run(["ip", "netns", "pids", name], check=False, capture_output=True, text=True)
        found += [int(word) for word in done.stdout.split()]
    return found
