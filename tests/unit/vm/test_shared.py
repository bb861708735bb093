"""This machine's root for a machine: what can be wrong is said before a boot, and the server ends with the machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vagrant.vm import __main__ as commands
from vagrant.vm import shared, trial
from vagrant.vm.errors import RootError, ToolError
from vagrant.vm.kernels import Kernel
from vagrant.vm.machine import Spec, arguments


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A function that puts a program in the place of unshare and virtiofsd; it returns the run's folder."""
    folder = tmp_path / "server"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(shared, "_program", lambda: Path("/the/virtiofsd"))

    def put(body: str) -> Path:
        program = folder / "unshare"
        program.write_text(f"#!{sys.executable}\nimport os, re, sys, time\nwords = ' '.join(sys.argv)\n{body}\n")
        program.chmod(0o755)
        return tmp_path

    return put


SERVES = (
    "open(os.path.dirname(sys.argv[0]) + '/pid', 'w').write(str(os.getpid()))\n"
    "open(re.search(r'--socket-path=(\\S+)', words)[1], 'w')\n"
    "time.sleep(600)"
)


def test_the_server_is_given_a_read_only_mount_and_ends_with_the_run(server: Callable[[str], Path]) -> None:
    folder = server(SERVES)
    with shared.serving(folder, folder) as socket:
        assert socket.exists()
        process = Path(f"/proc/{(folder / 'server/pid').read_text()}")
        words = process.joinpath("cmdline").read_text().replace("\0", " ")
    assert re.search(r"remount,bind,ro .* /the/virtiofsd .* source=" + re.escape(f"{folder}/shared "), words, re.DOTALL)
    assert not process.exists()


def test_what_the_server_says_when_it_cannot_is_told(server: Callable[[str], Path]) -> None:
    folder = server("print('no user namespace for you', file=sys.stderr); sys.exit(1)")
    with pytest.raises(ToolError) as caught, shared.serving(folder, folder):
        raise AssertionError("it serves")
    assert "no user namespace for you" in caught.value.hint


def test_a_machine_with_this_ones_root_has_the_checkout_as_it_is_and_no_disk_with_a_tree(
    server: Callable[[str], Path], guest: Callable[[str], Path]
) -> None:
    server(SERVES)
    folder = guest(
        "initrd = open(sys.argv[sys.argv.index('-initrd') + 1], 'rb').read()\n"
        "say(output, re.search(rb'guest/checkout\\0+(\\S+)', initrd)[1].decode() + ' ' + words)\n"
        "say(steps, 'started\\nready 6.1\\nexit 0\\n')\n"
    )
    for name in ("vmlinuz", "initrd", "modules.img"):
        (folder / name).touch()
    heard: list[bytes] = []
    trial.run(
        Kernel("6.1.0-9-cloud-amd64", "6.1.27", folder), None, folder, "tcg",
        steps=["survey"], tests=[], limit=60, say=lambda text: None, told=heard.append,
    )  # fmt: skip
    place, _, words = b"".join(heard).decode().partition(" ")
    assert place == str(folder)
    assert "share=on" in words
    assert re.findall(r"file=(\S+\.\w+)", words) == [str(folder / "modules.img")]


def test_a_machine_with_a_tree_shares_nothing() -> None:
    words = " ".join(arguments(Spec(Path("k"), Path("i")), Path("console"), [5, 6, 7], 8))
    assert "share" not in words
    assert "vhost" not in words


def test_it_needs_the_server_root_and_a_checkout_that_is_set_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "require", lambda names: None)
    monkeypatch.setattr(shared, "PLACES", ())
    monkeypatch.setattr(shared, "search_path", lambda: "/nowhere")
    with pytest.raises(ToolError, match="virtiofsd") as caught:
        shared.check(tmp_path)
    assert "apt-get install virtiofsd" in caught.value.hint

    monkeypatch.setattr(shared, "PLACES", (sys.executable,))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(RootError, match="needs root"):
        shared.check(tmp_path)

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(ToolError, match="not set up") as caught:
        shared.check(tmp_path)
    assert "make setup" in caught.value.hint


def test_stories_need_a_tree_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert commands.main(["stories", "--system", shared.SYSTEM]) == 2


def test_the_guests_first_process_can_be_parsed() -> None:
    subprocess.run(["sh", "-n", str(trial.GUEST / "init")], check=True)
