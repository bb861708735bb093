"""The Vagrantfile, really tried: both machines brought up from the box, the lab and the stories in them, and destroyed.

Vagrant keeps its notes in a folder of this run's own, so what somebody has up from the same checkout stays as it is.
libvirt's daemons are started where no init does that, as in a container, and ended again.
"""

from __future__ import annotations

import base64
import contextlib
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from vagrant.vm import firewall
from vagrant.vm.asking import COMMAND_SECONDS, ask
from vagrant.vm.box import NAME
from vagrant.vm.errors import BootError, LateError, ToolError, UsageError
from vagrant.vm.pair import ADDRESSES
from vagrant.vm.place import require, search_path
from vagrant.vm.stories import Answer, Step

UP_SECONDS = 3600
_DAEMONS = ("virtlogd", "libvirtd")
# libvirt tries KVM at every start of a machine, for a minute each time where it hangs: it must not see a broken one.
_WITHOUT_KVM = '[ ! -e /dev/kvm ] || mount --bind /dev/null /dev/kvm; exec "$@"'
_VIRSH = ("virsh", "--connect", "qemu:///system")
_WAIT_SECONDS = 30
_END_SECONDS = 60


class Boxes:
    """Both machines of the Vagrantfile, up. `up_seconds`: how long that took, provisioning included."""

    def __init__(self, root: Path, accelerator: str, told: Callable[[bytes], None]) -> None:
        self._folder, self._accelerator, self._told = root / "vagrant", accelerator, told
        self._stack = contextlib.ExitStack()
        self._environment: dict[str, str] = {}
        self.up_seconds = 0.0

    def __enter__(self) -> Boxes:
        require(["vagrant", "libvirtd", "virsh", "rsync"])
        try:
            self._stack.enter_context(daemons(self._accelerator))
            self._stack.enter_context(_volumes_as_before())
            notes = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="sallyport-vagrant-"))
            self._environment = {
                **os.environ,
                "PATH": search_path(),
                "VAGRANT_DOTFILE_PATH": notes,
                "VAGRANT_DEFAULT_PROVIDER": "libvirt",
                "SALLYPORT_BOX": NAME,
                # What they need is in the box, and a network address translation would stay behind in this machine.
                "SALLYPORT_UPLINK": "none",
                "SALLYPORT_DRIVER": "kvm" if self._accelerator == "kvm" else "qemu",
            }
            self._stack.callback(self._vagrant, ["destroy", "--force"], 600)
            begun = time.monotonic()
            code = self._vagrant(["up"], UP_SECONDS)
            self.up_seconds = time.monotonic() - begun
            if code:
                raise BootError("vagrant up did not succeed; its own words stand above.", hint="Mend what it names.")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ssh(self, machine: str, command: str) -> int:
        """Run a command as a user of the Vagrantfile would, with its output on the screen; return its exit code."""
        return self._vagrant(["ssh", machine, "--command", command], COMMAND_SECONDS)

    def carry_out(self, step: Step) -> Answer:
        """Do what a story's step says, as root: ssh gives a user, and stories speak to an administrator."""
        if step.actor == "operator":
            raise UsageError("Vagrant's machines have no power switch here.", hint="Play this story in machines.")
        # The private network's card is the second one: the first is Vagrant's own.
        script = (
            "export PATH=/sallyport/.venv/bin:$PATH:/usr/sbin STATE=/var/lib/sallyport CGROUP=/sys/fs/cgroup "
            f"CHECKOUT=/sallyport WIRE=eth1 PEER={ADDRESSES['peer']}; cd; {step.command}"
        )
        packed = base64.b64encode(script.encode()).decode()
        words = ["vagrant", "ssh", step.actor, "--command", f"echo {packed} | base64 -d | sudo -i bash"]
        return ask(step, words, self._folder, self._environment)

    def _vagrant(self, words: list[str], seconds: float) -> int:
        process = subprocess.Popen(
            ["vagrant", *words, "--no-tty"] if words[0] == "up" else ["vagrant", *words],
            cwd=self._folder, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            # Ctrl-C is for the lab, which ends Vagrant in order.
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            if self._tell_all(process, time.monotonic() + seconds):
                return process.wait()
        finally:
            _end(process)
        raise LateError(f"vagrant {words[0]} was not done within {seconds:.0f} seconds.", hint="Try again.")

    def _tell_all(self, process: subprocess.Popen[bytes], until: float) -> bool:
        """Tell what it says as it comes; False when the time is up before its end."""
        assert process.stdout is not None  # noqa: S101 - it was asked for
        while select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
            if not (data := os.read(process.stdout.fileno(), 1 << 16)):
                return True
            self._told(data)
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End Vagrant and what it started, if it has not ended. It may finish its step, so that its notes and locks are in
    order for the destroying that follows."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)


@contextlib.contextmanager
def daemons(accelerator: str) -> Iterator[None]:
    """Have libvirt answer; what was started for it ends again."""
    if _answers():
        yield
        return
    if os.geteuid() != 0:
        raise ToolError(
            "libvirt does not answer.",
            hint="Start it (systemctl start libvirtd) and let your user use it (group libvirt), then run again.",
        )
    started: list[subprocess.Popen[bytes]] = []
    with firewall.as_before(), tempfile.TemporaryFile() as said:
        try:
            environment = {**os.environ, "PATH": search_path()}
            hidden = [] if accelerator == "kvm" else ["unshare", "--mount", "sh", "-c", _WITHOUT_KVM, "sh"]
            for name in _DAEMONS:
                words = ["nice", "-n", "10", *hidden, name]
                # In a session of their own: a signal for the lab must not end them before the machines are destroyed.
                started += [
                    subprocess.Popen(
                        words, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment,
                        start_new_session=True,
                    )
                ]  # fmt: skip
            until = time.monotonic() + _WAIT_SECONDS
            while not _answers():
                if time.monotonic() > until or any(one.poll() is not None for one in started):
                    said.seek(0)
                    last = (said.read().decode(errors="replace").strip().splitlines() or ["nothing"])[-1]
                    raise ToolError("libvirt's daemons cannot be started here.", hint=f"They said: {last}")
                time.sleep(0.2)
            yield
        finally:
            for one in reversed(started):
                one.terminate()
                one.wait()


@contextlib.contextmanager
def _volumes_as_before() -> Iterator[None]:
    """Vagrant keeps a box's disk in libvirt's pool for the next time; one that was not there before goes again."""
    before = _volumes()
    yield
    for name in _volumes() - before:
        subprocess.run([*_VIRSH, "vol-delete", "--pool", "default", name], check=False, capture_output=True)


def _volumes() -> set[str]:
    done = subprocess.run([*_VIRSH, "vol-list", "default"], check=False, capture_output=True, text=True)
    return {words[0] for line in done.stdout.splitlines() if "_vagrant_box_image_" in line and (words := line.split())}


def _answers() -> bool:
    try:
        done = subprocess.run([*_VIRSH, "version"], check=False, capture_output=True, timeout=_WAIT_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
