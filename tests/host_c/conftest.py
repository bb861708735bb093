"""The host's compiler over bpf/include: no root, no BPF."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from engine.abi.records import Tuple

HERE = Path(__file__).parent
INCLUDE = HERE.parents[1] / "bpf" / "include"
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize=alignment", "-fno-sanitize-recover=undefined")
"""Without alignment: the kernel's machines read eight bytes anywhere, and the parsers rely on it."""

Build = Callable[..., Path]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Compile a C file against the kernel's headers; return the program. `optional` flags only if they work."""
    folder = tmp_path_factory.mktemp("host_c")

    def compiled(source: Path, optional: tuple[str, ...] = ()) -> Path:
        program = folder / source.stem
        words = ["cc", "-std=gnu11", "-O1", "-g", "-Wall", "-Werror", "-Wno-unknown-pragmas", f"-I{INCLUDE}"]
        for flags in (optional, ()):
            done = subprocess.run([*words, *flags, "-o", program, source], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return program
        pytest.fail(f"{source.name} does not compile:\n{done.stderr}", pytrace=False)

    return compiled


class CPacket(NamedTuple):
    status: int
    flow: Tuple
    payload: int
    length: int
    seq: int
    tcp_flags: int


class Parsers:
    """Talks to parsers.c."""

    _request = struct.Struct("<cBHII")
    _packet = struct.Struct("<I40sIIIB3x")
    _hello = struct.Struct("<IQQ")

    def __init__(self, program: Path) -> None:
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def _ask(self, kind: bytes, fill: int, link: int, data: bytes, answer: struct.Struct) -> tuple[Any, ...]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(self._request.pack(kind, fill, 0, link, len(data)) + data)
        self._process.stdin.flush()
        said = self._process.stdout.read(answer.size)
        assert len(said) == answer.size, f"the parser died on {data.hex()}"
        return answer.unpack(said)

    def packet(self, frame: bytes, link: int = 14) -> CPacket:
        status, flow, payload, length, seq, flags = self._ask(b"P", 0, link, frame, self._packet)
        return CPacket(status, Tuple.unpack(flow), payload, length, seq, flags)

    def hello(self, payload: bytes, fill: int = 0) -> bytes | None:
        """Return the name as sent, None for HELLO_ENGINE."""
        status, offset, length = self._ask(b"H", fill, 0, payload, self._hello)
        return bytes(payload[offset : offset + length]) if status == 1 else None

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(10) == 0


@pytest.fixture(scope="session")
def parsers(build: Build) -> Iterator[Parsers]:
    running = Parsers(build(HERE / "parsers.c", SANITIZE))
    yield running
    running.close()
