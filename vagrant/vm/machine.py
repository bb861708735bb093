"""One emulated machine: QEMU's command line, its serial lines, and its end.

Serial lines: 1 the kernel's console (a file), 2 what the job says, 3 one line for each step, 4 what the job found out
(one JSON document a line). The last three are socket pairs, so nothing of them has a name in the file system.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vagrant.vm import shared
from vagrant.vm.errors import BootError, ToolError
from vagrant.vm.place import require, search_path

BOOT_SECONDS = 120
"""How long the way to the first process may take: 2 to 10 s when emulated on an idle machine."""

LINES = ("output", "steps", "findings")
_KEEP_CONSOLE_LINES = 15
_GOING_SECONDS = 10


@dataclass(frozen=True)
class Disk:
    image: Path
    read_only: bool = True


@dataclass(frozen=True)
class Spec:
    """What a machine is made of. `append` goes to the kernel's command line; `network` are words for QEMU."""

    kernel: Path
    initrd: Path
    disks: tuple[Disk, ...] = ()
    accelerator: str = "tcg"
    cpu: str = "qemu64"
    megabytes: int = 1536
    append: str = ""
    network: tuple[str, ...] = ("-nic", "none")
    stays_on_reset: bool = False
    inherited: tuple[int, ...] = ()
    """File descriptors that `network` speaks of."""
    shares_root: bool = False
    """Has it this machine's own root file system, in place of a disk with one?"""


def emulated_cpu(version: tuple[int, ...]) -> str:
    """Choose what TCG emulates. QEMU 7.2's cmpxchg16b panics Linux 6.12 in one of seven boots, so older kernels go
    without; since 6.18 the kernel's lock-free allocator needs it, without which no socket storage can be made."""
    return "qemu64" if version >= (6, 18) else "qemu64,-cx16"


def arguments(spec: Spec, console: Path, lines: Sequence[int], monitor: int, root: Path | None = None) -> list[str]:
    """QEMU's command line. `lines`, `monitor`: file descriptors that it inherits. `root`: virtiofsd's socket."""
    accelerator = "tcg,thread=multi" if spec.accelerator == "tcg" else spec.accelerator
    words = [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
        "-machine", "q35", "-accel", accelerator, "-cpu", spec.cpu, "-smp", "1", "-m", str(spec.megabytes),
        "-kernel", str(spec.kernel), "-initrd", str(spec.initrd),
        "-append", f"console=ttyS0 panic=-1 quiet {spec.append}".strip(),
        "-device", "virtio-rng-pci", "-serial", f"file:{console}",
    ]  # fmt: skip
    if not spec.stays_on_reset:
        words.append("-no-reboot")
    for number, fd in enumerate(lines):
        words += ["-chardev", f"socket,id=line{number},fd={fd}", "-serial", f"chardev:line{number}"]
    words += ["-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=readline"]
    for number, disk in enumerate(spec.disks):
        name, read_only = f"disk{number}", "on" if disk.read_only else "off"
        # Without a cache of the host's nothing is written later than the guest believes: a power cut is one.
        cache = "" if disk.read_only else ",cache=directsync"
        words += ["-drive", f"if=none,id={name},format=raw,readonly={read_only},file={disk.image}{cache}"]
        words += ["-device", f"virtio-blk-pci,drive={name}"]
    if root is not None:
        # virtiofsd reads and writes the guest's memory itself.
        words += ["-object", f"memory-backend-memfd,id=memory,size={spec.megabytes}M,share=on"]
        words += ["-machine", "memory-backend=memory"]
        words += ["-chardev", f"socket,id=root,path={root}", "-device", "vhost-user-fs-pci,chardev=root,tag=root"]
    return [*words, *spec.network]


@dataclass
class Machine:
    """A running machine. `steps` and `findings` are what came over the lines so far; `output` is told as it comes."""

    process: subprocess.Popen[bytes]
    folder: Path
    sockets: dict[str, socket.socket]
    monitor: socket.socket
    steps: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    _rest: dict[str, bytes] = field(default_factory=dict)

    def watch(self, until: float, told: Callable[[bytes], None], done: Callable[[Machine], bool]) -> bool:
        """Read the lines until `done`, the machine's end or the time (monotonic) is reached; is it done?"""
        with selectors.DefaultSelector() as selector:
            for name, one in self.sockets.items():
                selector.register(one, selectors.EVENT_READ, name)
            while not done(self):
                left = until - time.monotonic()
                if left <= 0 or not selector.get_map():
                    break
                for key, _ in selector.select(min(left, 1.0)):
                    data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                    if data:
                        self._take(key.data, data, told)
                    else:
                        selector.unregister(key.fileobj)
            if not selector.get_map():
                # The lines close a moment before the process is gone, and its end is what is asked for next.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(_GOING_SECONDS)
        return done(self)

    def _take(self, name: str, data: bytes, told: Callable[[bytes], None]) -> None:
        if name == "output":
            told(data)
            return
        *whole, self._rest[name] = (self._rest.get(name, b"") + data).split(b"\n")
        lines = self.steps if name == "steps" else self.findings
        lines += [line.decode(errors="replace").strip() for line in whole if line.strip()]

    def ended(self) -> bool:
        return self.process.poll() is not None

    def command(self, words: str) -> None:
        """Say something to QEMU's monitor, such as `quit` (a power cut) or `system_reset`."""
        with contextlib.suppress(OSError):
            self.monitor.sendall(words.encode() + b"\n")

    def tell(self, line: str) -> None:
        """Answer over the line of steps: the guest's scripts read from it."""
        self.sockets["steps"].sendall(line.encode() + b"\n")

    def last_words(self) -> str:
        """The end of the kernel's console, for an error's hint."""
        console = self.folder / "console"
        text = console.read_text(errors="replace") if console.exists() else ""
        lines = [line for line in text.splitlines() if line.strip()][-_KEEP_CONSOLE_LINES:]
        return "\n    ".join(lines) or "nothing"


@contextlib.contextmanager
def running(spec: Spec) -> Iterator[Machine]:
    """Start a machine; whatever happens, it is gone at the end, and so is all that it wrote beside its disks."""
    require(["qemu-system-x86_64", "setpriv"])
    ours: list[socket.socket] = []
    process = None
    served = contextlib.ExitStack()
    try:
        work = Path(served.enter_context(tempfile.TemporaryDirectory(prefix="sallyport-vm-")))
        root = served.enter_context(shared.serving(work)) if spec.shares_root else None
        pairs = [socket.socketpair() for _ in (*LINES, "monitor")]
        ours = [own for own, _ in pairs]
        inherited = [theirs.fileno() for _, theirs in pairs]
        words = arguments(spec, work / "console", inherited[:-1], inherited[-1], root)
        process = subprocess.Popen(
            # It must not outlive this process, however that ends; and whoever works here comes first.
            ["setpriv", "--pdeathsig", "KILL", "nice", "-n", "10", *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=(work / "qemu").open("wb"),
            pass_fds=(*inherited, *spec.inherited), env={**os.environ, "PATH": search_path()},
        )  # fmt: skip
        for _, theirs in pairs:
            theirs.close()
        yield Machine(process, work, dict(zip(LINES, ours, strict=False)), ours[-1])
    finally:
        if process is not None:
            process.kill()
            process.wait()
        for one in ours:
            one.close()
        served.close()


def wait_for_start(machine: Machine, told: Callable[[bytes], None]) -> None:
    """Wait for the guest's first process. Raises BootError with the console's end when it does not come, and ToolError
    when QEMU itself refused: then nothing that the guest did or did not do means anything."""
    until = time.monotonic() + BOOT_SECONDS
    if not machine.watch(until, told, lambda one: bool(one.steps)):
        if machine.process.poll() == 1:
            said = (machine.folder / "qemu").read_text(errors="replace").strip().splitlines() or ["nothing"]
            raise ToolError("QEMU refused to start the machine.", hint=f"It said: {said[-1]}")
        raise BootError(
            f"The machine did not come to its first process within {BOOT_SECONDS} seconds."
            if not machine.ended()
            else "The machine ended before its first process.",
            hint=f"The console's last lines:\n    {machine.last_words()}",
        )
