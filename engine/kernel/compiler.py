"""The compiler: BCC, in processes of its own, as many as there are CPUs; what comes out are values.

BCC creates a file's maps and pins them while it compiles. Here that happens in a mount namespace with a BPF file
system of its own: nothing of the host's is touched, and whatever becomes of the process, its maps go with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import select
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import KernelError
from engine.kernel import libbpf
from engine.kernel.bpf import lift_memory_limit
from engine.kernel.objects import Code, MapLayout, Unit, from_json, to_json
from engine.kernel.pins import BPFFS
from engine.kernel.programs import PROGRAMS, SOURCES

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
_UNREAD = {"x86_64": ("-D_LINUX_LOG2_H", "-D_ASM_X86_PAGE_H")}
"""Guards of headers that BCC includes before each file, by machine: once defined, they keep a header from being read.
That saves 0.06 s a file; nothing of them is used."""
_SAID_BYTES = 2000
"""The end of what a compiler said is what an error shows."""


def flags(sizes: dict[str, int]) -> list[str]:
    """Return the compiler's arguments. The pins are those of the compiling process, whoever the gate is for."""
    return [
        f"-I{SOURCES / 'include'}", "-DSALLYPORT_KERNEL", f'-DSALLYPORT_PINS="{BPFFS}"',
        *(f"-D{name}={size}" for name, size in sorted(sizes.items())),
    ]  # fmt: skip


@dataclass(frozen=True)
class Part:
    """Programs of one C file that are compiled together; the others of the file are left out."""

    source: str
    programs: tuple[str, ...]

    def flags(self) -> list[str]:
        """Make the file's other programs static: what is neither called nor seen from outside is not compiled."""
        others = [each.name for each in PROGRAMS if each.source == self.source and each.name not in self.programs]
        return [f"-D{name}=static {name}" for name in others]


_APART = frozenset({"gate_egress"})
"""What takes as long as all the rest of its file, and is compiled beside it: to read the file twice costs 0.2 s."""


def parts() -> list[Part]:
    """Return what can be compiled side by side, what takes longest first."""
    groups: dict[tuple[str, bool], list[str]] = {}
    for program in PROGRAMS:
        groups.setdefault((program.source, program.name in _APART), []).append(program.name)
    found = [Part(source, tuple(names)) for (source, _), names in groups.items()]
    return sorted(found, key=lambda part: -(SOURCES / part.source).stat().st_size)


@dataclass
class Compilation:
    """Compilers at work. `result` waits for them; `abandon` ends them."""

    _running: dict[int, int] = field(default_factory=dict)
    """Read end of the pipe -> process."""

    @classmethod
    def start(cls, sizes: dict[str, int], tree: Path | None) -> Compilation:
        """Start a process for each CPU. `tree`: kernel headers, None for the running kernel's own.

        KernelError when there is no bcc.
        """
        if tree is not None:
            os.environ["BCC_KERNEL_SOURCE"] = str(tree)
        try:
            import bcc  # noqa: F401, PLC0415 - once, before the processes part: 75 MiB, most of which they share
        except ImportError as error:
            raise KernelError(
                "The Python module bcc is not available to this Python",
                hint="Run `make setup`: it installs python3-bpfcc and builds .venv on the distribution's Python.",
            ) from error
        lift_memory_limit()
        started = cls()
        work = parts()
        # Whoever is free takes the next number: a byte is read whole or not at all.
        numbers, giving = os.pipe()
        os.write(giving, bytes(range(len(work))))
        os.close(giving)
        sys.stdout.flush()
        for _ in range(min(len(work), len(os.sched_getaffinity(0)))):
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                _worker(work, numbers, flags(sizes), writing)
            os.close(writing)
            started._running[reading] = pid
        os.close(numbers)
        return started

    def result(self) -> tuple[tuple[Unit, ...], tuple[str, ...]]:
        """Wait; return the units, and the files of the compiler itself. KernelError when a file does not compile."""
        said = {reading: bytearray() for reading in self._running}
        try:
            while self._running:
                # Whatever there is: a worker whose pipe is full takes no more work.
                for reading in select.select(list(self._running), [], [])[0]:
                    data = os.read(reading, 1 << 16)
                    said[reading] += data
                    if not data:
                        # Not waited for: taking down its maps and mounts takes time that nobody needs to lose.
                        os.close(reading)
                        del self._running[reading]
        finally:
            self.abandon()
        lines = b"".join(said.values()).splitlines()
        answers = {answer["part"]: answer for answer in map(json.loads, lines)}
        units: list[Unit] = []
        tools: set[str] = set()
        for number, part in enumerate(parts()):
            answer = answers.get(number)
            if answer is None:
                raise KernelError(f"The compiler of {part.source} ended without an answer")
            if "error" in answer:
                raise KernelError(
                    f"The kernel program {part.source} did not load: {answer['error']}",
                    hint=f"What the compiler said:\n{answer['said']}",
                )
            units += from_json(answer["units"].encode())
            tools |= set(answer["tools"])
        return tuple(units), tuple(sorted(tools))

    def abandon(self) -> None:
        """End what still runs."""
        for reading, pid in self._running.items():
            os.close(reading)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._running.clear()


def _worker(work: Sequence[Part], numbers: int, arguments: Sequence[str], writing: int) -> None:
    """Compile until there is no more to do, answer a JSON line for each part, and never return."""
    said = os.memfd_create("said")
    os.dup2(said, 1)
    os.dup2(said, 2)
    try:
        with open(writing, "w") as pipe:
            trouble: dict[str, Any] = {}
            try:
                _part_from_the_host()
            except OSError as error:
                trouble = {"error": str(error), "said": ""}
            while number := os.read(numbers, 1):
                answer = trouble or _answer(work[number[0]], arguments, said)
                pipe.write(json.dumps({"part": number[0], **answer}) + "\n")
    finally:
        # Not sys.exit: the finalizers, the buffers and the input that this process was forked with are its parent's.
        os._exit(0)


def _answer(part: Part, arguments: Sequence[str], said: int) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    # Where something does need the headers that are left out, and where the mistake is ours, the second try tells.
    for more in (_UNREAD.get(platform.machine(), ()), ()):
        begun = os.fstat(said).st_size
        try:
            # A fresh one for each part: what BCC finds pinned it takes, whatever its layout.
            _mount("bpf", str(BPFFS), "bpf")
            return {"units": to_json((_compile(part, [*arguments, *more]),)).decode(), "tools": _tools()}
        except Exception as error:  # noqa: BLE001 - bcc raises bare Exception
            end = os.pread(said, 1 << 20, begun).decode(errors="replace").strip()[-_SAID_BYTES:]
            answer = {"error": str(error), "said": end}
    return answer


def _part_from_the_host() -> None:
    """A mount namespace where the host's BPF file system is out of sight, and the list of kernel symbols is short.

    BCC reads the whole list, 200,000 lines and 0.18 s for each file, for one question: is there bpf_probe_read_kernel?
    There is, since 5.5.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "unshare")
    _mount("none", "/", flags=_MS_REC | _MS_PRIVATE)
    _mount("tmpfs", str(BPFFS), "tmpfs")
    symbols = BPFFS / "kallsyms"
    symbols.write_text("ffffffff81000000 T bpf_probe_read_kernel\n")
    with contextlib.suppress(OSError):  # a /proc that cannot be mounted upon is a slower one
        _mount(str(symbols), "/proc/kallsyms", flags=_MS_BIND)


def _mount(source: str, target: str, kind: str = "", flags: int = 0) -> None:
    words = [os.fsencode(word) if word else None for word in (source, target, kind)]
    if ctypes.CDLL(None, use_errno=True).mount(*words, ctypes.c_ulong(flags), None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)


def _compile(part: Part, arguments: Sequence[str]) -> Unit:
    from bcc import BPF  # noqa: PLC0415
    from bcc.libbcc import lib  # noqa: PLC0415

    module = BPF(src_file=str(SOURCES / part.source), cflags=[*arguments, *part.flags()])
    lib.bpf_num_tables.restype = ctypes.c_ulonglong
    lib.bpf_num_tables.argtypes = [ctypes.c_void_p]
    lib.bpf_table_name.restype = ctypes.c_char_p
    lib.bpf_table_name.argtypes = [ctypes.c_void_p, ctypes.c_ulonglong]
    names = [lib.bpf_table_name(module.module, at) for at in range(lib.bpf_num_tables(module.module))]
    descriptors = {int(lib.bpf_table_fd(module.module, name)): name.decode() for name in names}
    return Unit(
        part.source,
        lib.bpf_module_license(module.module).decode(),
        tuple(_layout(fd, name) for fd, name in sorted(descriptors.items())),
        tuple(Code.of(name, module.dump_func(name.encode()), descriptors) for name in part.programs),
    )


def _layout(fd: int, name: str) -> MapLayout:
    """Ask the kernel what BCC made of a declaration."""
    info = libbpf.map_info(fd)
    return MapLayout(
        name, int(info.type), int(info.key_size), int(info.value_size), int(info.max_entries), int(info.map_flags),
        (BPFFS / name).exists(),
    )  # fmt: skip


def _tools() -> list[str]:
    """The shared objects that this process compiled with."""
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    return sorted(path for path in mapped if any(name in path for name in ("libbcc", "libLLVM", "libclang")))
