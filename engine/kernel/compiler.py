"""The compiler: BCC, in processes of its own, one a C file and all at once; what comes out are values.

BCC creates a file's maps and pins them while it compiles. Here that happens in a mount namespace with a BPF file
system of its own: nothing of the host's is touched, and whatever becomes of the process, its maps go with it.
"""

from __future__ import annotations

import ctypes
import json
import os
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
_MS_REC, _MS_PRIVATE = 1 << 14, 1 << 18
_SAID_BYTES = 2000
"""The end of what a compiler said is what an error shows."""


def flags(sizes: dict[str, int]) -> list[str]:
    """Return the compiler's arguments. The pins are those of the compiling process, whoever the gate is for."""
    return [
        f"-I{SOURCES / 'include'}", "-DSALLYPORT_KERNEL", f'-DSALLYPORT_PINS="{BPFFS}"',
        *(f"-D{name}={size}" for name, size in sorted(sizes.items())),
    ]  # fmt: skip


def sources() -> list[str]:
    """The C files, the one that takes longest first."""
    return sorted({program.source for program in PROGRAMS}, key=lambda name: -(SOURCES / name).stat().st_size)


@dataclass
class Compilation:
    """Compilers at work. `result` waits for them; `abandon` ends them."""

    _running: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Read end of the pipe -> (C file, process)."""

    @classmethod
    def start(cls, sizes: dict[str, int], tree: Path | None) -> Compilation:
        """Start a process for each C file. `tree`: kernel headers, None for the running kernel's own.

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
        sys.stdout.flush()
        for source in sources():
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                _child(source, flags(sizes), writing)
            os.close(writing)
            started._running[reading] = (source, pid)
        return started

    def result(self) -> tuple[tuple[Unit, ...], tuple[str, ...]]:
        """Wait; return the units, and the files of the compiler itself. KernelError when a file does not compile."""
        answers: dict[str, bytes] = {}
        try:
            while self._running:
                for reading in select.select(list(self._running), [], [])[0]:
                    source, pid = self._running[reading]
                    with open(reading, "rb") as pipe:  # noqa: PTH123 - there is no path
                        answers[source] = pipe.read()
                    del self._running[reading]
                    os.waitpid(pid, 0)
        finally:
            self.abandon()
        units: list[Unit] = []
        tools: set[str] = set()
        for source in sorted(answers):
            try:
                answer = json.loads(answers[source])
            except ValueError as error:
                raise KernelError(f"The compiler of {source} ended without an answer") from error
            if "error" in answer:
                raise KernelError(
                    f"The kernel program {source} did not load: {answer['error']}",
                    hint=f"What the compiler said:\n{answer['said']}",
                )
            units += from_json(answer["units"].encode())
            tools |= set(answer["tools"])
        return tuple(units), tuple(sorted(tools))

    def abandon(self) -> None:
        """End what still runs."""
        for reading, (_, pid) in self._running.items():
            os.close(reading)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._running.clear()


def _child(source: str, arguments: Sequence[str], writing: int) -> None:
    """Compile one file, answer in JSON, and never return."""
    answer: dict[str, Any]
    said = os.memfd_create("said")
    os.dup2(said, 2)
    os.dup2(said, 1)
    try:
        _part_from_the_host()
        answer = {"units": to_json((_compile(source, arguments),)).decode(), "tools": _tools()}
    except Exception as error:  # noqa: BLE001 - bcc raises bare Exception
        end = os.pread(said, 1 << 20, 0).decode(errors="replace").strip()[-_SAID_BYTES:]
        answer = {"error": str(error), "said": end}
    try:
        with open(writing, "wb") as pipe:
            pipe.write(json.dumps(answer).encode())
    finally:
        # Not sys.exit: the finalizers, the buffers and the input that this process was forked with are its parent's.
        os._exit(0)


def _part_from_the_host() -> None:
    """A mount namespace with an empty BPF file system where the host's is."""
    library = ctypes.CDLL(None, use_errno=True)
    none = ctypes.c_void_p()
    for call, *given in (
        (library.unshare, _CLONE_NEWNS),
        (library.mount, b"none", b"/", none, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), none),
        (library.mount, b"bpf", os.fsencode(BPFFS), b"bpf", ctypes.c_ulong(0), none),
    ):
        if call(*given):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "a BPF file system for the compiler")


def _compile(source: str, arguments: Sequence[str]) -> Unit:
    from bcc import BPF  # noqa: PLC0415
    from bcc.libbcc import lib  # noqa: PLC0415

    module = BPF(src_file=str(SOURCES / source), cflags=list(arguments))
    lib.bpf_num_tables.restype = ctypes.c_ulonglong
    lib.bpf_num_tables.argtypes = [ctypes.c_void_p]
    lib.bpf_table_name.restype = ctypes.c_char_p
    lib.bpf_table_name.argtypes = [ctypes.c_void_p, ctypes.c_ulonglong]
    names = [lib.bpf_table_name(module.module, at) for at in range(lib.bpf_num_tables(module.module))]
    descriptors = {int(lib.bpf_table_fd(module.module, name)): name.decode() for name in names}
    return Unit(
        source,
        lib.bpf_module_license(module.module).decode(),
        tuple(_layout(fd, name) for fd, name in sorted(descriptors.items())),
        tuple(
            Code.of(program.name, module.dump_func(program.name.encode()), descriptors)
            for program in PROGRAMS
            if program.source == source
        ),
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
