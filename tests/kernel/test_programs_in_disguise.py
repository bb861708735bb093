"""Who a packet belongs to, however a program hides: by its file, and between two sockets with the same addresses."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.cable import Cable
from tests.kernel.host import Host
from tests.kernel.lab import INSIDE, OUTSIDE
from tests.support.netns import Agent

PORT, SHARED = 7000, 7001
PYTHON = Path(sys.executable).resolve()


def policy(digest: str, allowed: str) -> dict[str, str]:
    return {
        "sallyport.rego": 'package sallyport\n\ndefault_verdict := "allow"\n',
        "rules/digests/digests.rego": (
            "package sallyport.rules.digests\n\n"
            'scope := {"dest", "exe"}\n\n'
            f'target_scope := {{"dest"}}\n\ntarget if input.dest.port == {PORT}\n\n'
            f'deny contains "a program that is denied" if input.exe.sha256 == "{digest}"\n'
        ),
        "rules/paths/paths.rego": (
            "package sallyport.rules.paths\n\n"
            'scope := {"dest", "exe"}\n\n'
            f'target_scope := {{"dest"}}\n\ntarget if input.dest.port == {SHARED}\n\n'
            f'deny contains "another program" if input.exe.path != "{allowed}"\n'
        ),
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The denied program: the interpreter with a byte behind its end."""
    folder = tmp_path_factory.mktemp("programs")
    folder.chmod(0o755)
    shutil.copy(PYTHON, folder / "allowed")
    shutil.copy(PYTHON, folder / "denied")
    with (folder / "denied").open("ab") as file:
        file.write(b"\n")
    return folder


@pytest.fixture(scope="module")
def running(files: Path) -> Iterator[Host]:
    host = Host(policy(hashlib.sha256((files / "denied").read_bytes()).hexdigest(), str(files / "allowed")))
    try:
        host.start()
        yield host
    finally:
        host.close()


def program(host: Host, file: Path) -> Agent:
    """Start a process of this file inside the control group."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(file))
        return host.agent()


TOUCHES = {
    "nothing": "0",
    "mode": "os.chmod(FILE, 0o755)",
    "times": "os.utime(FILE)",
    "link": "os.link(FILE, FILE + '2'); os.unlink(FILE + '2')",
    "no file": "os.unlink(FILE)",
}


@pytest.mark.parametrize("how", TOUCHES)
def test_a_program_that_touches_its_file_keeps_its_digest(host: Host, cable: Cable, files: Path, how: str) -> None:
    copy = files / f"copy {how}"
    shutil.copy(files / "denied", copy)
    client = program(host, copy)
    client.do(f"FILE = {str(copy)!r}\n{TOUCHES[how]}")
    token = f"token: {how}".encode()
    assert not cable.lets_out(token, lambda: client.do(f"u = udp(); u.sendto({token!r}, ({OUTSIDE!r}, {PORT}))"))


def test_two_sockets_with_the_same_addresses_are_told_apart(host: Host, cable: Cable, files: Path) -> None:
    """Both packets are held before the engine looks at the first."""
    denied, allowed = program(host, files / "denied"), program(host, files / "allowed")
    for each in (allowed, denied):
        each.do(f"u = udp(); u.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1); u.bind(({INSIDE!r}, 40001))")

    def send() -> None:
        host.engine.pause()
        try:
            denied.do(f"u.sendto(b'from the denied one', ({OUTSIDE!r}, {SHARED}))")
            allowed.do(f"u.sendto(b'from the allowed one', ({OUTSIDE!r}, {SHARED}))")
        finally:
            host.engine.resume()
        denied.do(f"u.sendto(b'once more', ({OUTSIDE!r}, {SHARED}))")

    assert not cable.lets_out(b"from the denied one", send)
