"""A signal ends the lab in order: nothing of it is left, and a second signal disturbs nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vagrant.vm import asking, confined, vagrantfile
from vagrant.vm.errors import LateError
from vagrant.vm.interruption import Interrupted, heeded
from vagrant.vm.machine import Spec, running
from vagrant.vm.stories import Step

# In unshare's place: runs what it is given as a child and waits for it, as with --fork.
_UNSHARE = """#!/bin/sh
while [ "${1#--}" != "$1" ] || [ "$1" = private ]; do shift; done
"$@" &
wait $!
"""
_VAGRANT = f"""#!{sys.executable}
import os, signal, sys, time
from pathlib import Path
here = Path(sys.argv[0]).parent
here.joinpath("pid").write_text(str(os.getpid()))
print("Bringing machine up", flush=True)
if here.joinpath("interrupts").exists():
    os.kill(os.getppid(), signal.SIGTERM)
time.sleep(600)
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """A function that puts a program of that name first in PATH; it returns the folder."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def put(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
        return tmp_path

    return put


def gone(pid: str) -> bool:
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_does_not_disturb_the_tidying(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    tidied: list[bool] = []

    @contextlib.contextmanager
    def tidying() -> Iterator[None]:
        try:
            yield
        finally:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGTERM)
            tidied.append(True)

    with pytest.raises(Interrupted) as caught, heeded(), tidying():
        os.kill(os.getpid(), number)
    assert tidied
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before


def test_what_is_ignored_here_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with heeded():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_machine_goes_with_its_folder(guest: Callable[[str], Path]) -> None:
    folder = guest("os.kill(os.getppid(), 15)\ntime.sleep(600)\n")
    with pytest.raises(Interrupted), heeded(), running(Spec(Path("vmlinuz"), Path("initrd"))) as machine:
        machine.process.wait()
    assert machine.ended()
    assert list((folder / "tmp").iterdir()) == []


def test_what_a_confined_program_started_is_gone_before_its_folder_is_touched(
    program: Callable[[str, str], Path],
) -> None:
    folder = program("unshare", _UNSHARE)
    words = ["sh", "-c", f"echo $$ >{folder}/pid; kill -TERM {os.getpid()}; exec sleep 600"]
    with (folder / "said").open("wb") as said, pytest.raises(Interrupted), heeded():
        confined.run(words, said, dict(os.environ))
    assert gone((folder / "pid").read_text().strip())


def test_a_confined_programs_words_and_exit_code_come_back(program: Callable[[str, str], Path]) -> None:
    folder = program("unshare", _UNSHARE)
    with (folder / "said").open("wb") as said:
        assert confined.run(["sh", "-c", "echo no; exit 7"], said, dict(os.environ)) == 7
    assert (folder / "said").read_text() == "no\n"


def boxes(folder: Path, heard: list[bytes]) -> vagrantfile.Boxes:
    (folder / "vagrant-folder" / "vagrant").mkdir(parents=True)
    made = vagrantfile.Boxes(folder / "vagrant-folder", "tcg", heard.append)
    made._environment = dict(os.environ)
    return made


def test_a_vagrant_that_says_nothing_more_is_ended_at_its_limit(program: Callable[[str, str], Path]) -> None:
    folder = program("vagrant", _VAGRANT)
    heard: list[bytes] = []
    with pytest.raises(LateError, match="vagrant up was not done"):
        boxes(folder, heard)._vagrant(["up"], 1)
    assert gone((folder / "pid").read_text())
    assert b"".join(heard) == b"Bringing machine up\n"


def test_vagrant_goes_with_the_lab(program: Callable[[str, str], Path]) -> None:
    folder = program("vagrant", _VAGRANT)
    (folder / "interrupts").touch()
    with pytest.raises(Interrupted), heeded():
        boxes(folder, [])._vagrant(["up"], 600)
    assert gone((folder / "pid").read_text())


def test_a_step_without_an_answer_is_told_by_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "COMMAND_SECONDS", 0.1)
    with pytest.raises(LateError, match='peer did not answer to "true for ever"'):
        asking.ask(Step("peer", "true for ever", 1), ["sleep", "600"], tmp_path, os.environ)


def test_a_signal_for_the_lab_is_none_for_the_daemons_that_destroying_needs(
    program: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal and timeout(1) signal a whole group; the session tells the lab's from the daemons'."""
    folder = program(
        "virsh", '#!/bin/sh\ntest -s "$(dirname "$0")/virtlogd.pid" -a -s "$(dirname "$0")/libvirtd.pid"\n'
    )
    for name in ("virtlogd", "libvirtd"):
        program(name, '#!/bin/sh\necho $$ >"$0.new" && mv "$0.new" "$0.pid"\nexec sleep 600\n')
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with vagrantfile.daemons("kvm"):
        pids = [int((folder / f"{name}.pid").read_text()) for name in ("virtlogd", "libvirtd")]
        sessions = {os.getsid(pid) for pid in pids}
    assert os.getsid(0) not in sessions
    assert all(gone(str(pid)) for pid in pids)
