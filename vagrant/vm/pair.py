"""Two machines on one wire, and the operator beside them: what stories with a reboot or a power cut are played on."""

from __future__ import annotations

import base64
import contextlib
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from vagrant.vm import checkout, trial
from vagrant.vm.asking import COMMAND_SECONDS, late
from vagrant.vm.errors import LateError, UsageError
from vagrant.vm.images import ext4
from vagrant.vm.kernels import Kernel
from vagrant.vm.machine import Disk, Machine, Spec, emulated_cpu, running, wait_for_start
from vagrant.vm.stories import Answer, Step

ADDRESSES = {"enforcer": "192.168.77.10", "peer": "192.168.77.11"}
CHANGES_MEGABYTES = 1024
UP_SECONDS = 600
_CUT_SECONDS = 60


class Pair:
    """The machines of a story. They keep what they wrote over a reset and a power cut, and lose it at the end."""

    def __init__(self, kernel: Kernel, tree: Path, root: Path, accelerator: str) -> None:
        self._kernel, self._tree, self._root, self._accelerator = kernel, tree, root, accelerator
        self._machines: dict[str, Machine] = {}
        self._ends: dict[str, contextlib.ExitStack] = {}
        self._stack = contextlib.ExitStack()
        self._folder = Path()
        self._wire: dict[str, socket.socket] = {}

    def __enter__(self) -> Pair:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="sallyport-vm-")))
        checkout.pack(self._root, self._folder / "checkout.tar")
        for name in ADDRESSES:
            ext4(None, self._folder / f"{name}.img", CHANGES_MEGABYTES)
        # The wire is a pair of sockets: nothing else can reach the machines, and they nothing else. Datagrams,
        # because a stream would stay in the middle of a frame when the power is cut there.
        self._wire = dict(zip(ADDRESSES, socket.socketpair(type=socket.SOCK_DGRAM), strict=True))
        try:
            for name in ADDRESSES:
                self._switch_on(name)
            for name in ADDRESSES:
                self._wait_until_up(name, 1)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._ends.values():
            end.close()
        for one in self._wire.values():
            one.close()
        self._stack.close()

    def carry_out(self, step: Step) -> Answer:
        """Do what a story's step says. Raises LateError when a machine does not answer."""
        if step.actor == "operator":
            return self._operate(step.command)
        machine = self._machines[step.actor]
        answers = len(_answers(machine))
        self._say(machine, step.command)
        until = time.monotonic() + COMMAND_SECONDS
        if not machine.watch(until, lambda _: None, lambda one: len(_answers(one)) > answers):
            raise late(step, f"Console:\n    {machine.last_words()}")
        _, code, *said = _answers(machine)[-1].split(" ")
        return Answer(int(code), base64.b64decode("".join(said)).decode(errors="replace"))

    @staticmethod
    def _say(machine: Machine, command: str) -> None:
        machine.tell(base64.b64encode(command.encode()).decode())

    def _operate(self, command: str) -> Answer:
        """`reboot NAME`: in good order. `reset NAME`: at once. `cut NAME`: its power goes. `start NAME`: it is back."""
        verb, _, name = command.partition(" ")
        if name not in ADDRESSES or verb not in {"reboot", "reset", "cut", "start"}:
            raise UsageError(
                f'The operator cannot "{command}".', hint="reboot, reset, cut or start, and a machine's name."
            )
        if verb == "cut":
            self._machines[name].command("quit")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._machines[name].process.wait(_CUT_SECONDS)
            self._machines[name].process.kill()
        elif verb in {"reboot", "reset"}:
            ups = _ups(self._machines[name])
            if verb == "reboot":
                # Its answer is not waited for: the agent may be gone before it gives one.
                self._say(self._machines[name], "systemctl reboot")
            else:
                self._machines[name].command("system_reset")
            self._wait_until_up(name, ups + 1)
        else:
            self._switch_on(name)
            self._wait_until_up(name, 1)
        return Answer(0, "")

    def _switch_on(self, name: str) -> None:
        self._ends.pop(name, contextlib.ExitStack()).close()
        initrd = self._folder / f"{name}.initrd"
        identity = [f"name={name}", f"address={ADDRESSES[name]}"]
        initrd.write_bytes(
            self._kernel.initrd.read_bytes() + trial.guest_part({"identity": identity}, trial.MACHINE_FILES)
        )
        wire = self._wire[name].fileno()
        mac = f"52:54:00:00:00:{list(ADDRESSES).index(name) + 1:02x}"
        spec = Spec(
            self._kernel.image,
            initrd,
            (
                Disk(self._tree),
                Disk(self._kernel.modules),
                Disk(self._folder / "checkout.tar"),
                Disk(self._folder / f"{name}.img", read_only=False),
            ),
            self._accelerator,
            "host" if self._accelerator == "kvm" else emulated_cpu(self._kernel.number),
            append="net.ifnames=0",
            network=("-netdev", f"socket,id=wire,fd={wire}", "-device", f"virtio-net-pci,netdev=wire,mac={mac}"),
            inherited=(wire,),
            stays_on_reset=True,
        )
        end = contextlib.ExitStack()
        self._ends[name] = end
        self._machines[name] = end.enter_context(running(spec))

    def _wait_until_up(self, name: str, times: int) -> None:
        machine = self._machines[name]
        wait_for_start(machine, lambda _: None)
        if not machine.watch(time.monotonic() + UP_SECONDS, lambda _: None, lambda one: _ups(one) >= times):
            raise LateError(f"{name} did not come up.", hint=f"Console:\n    {machine.last_words()}")


def _ups(machine: Machine) -> int:
    return sum(line.startswith("ready ") for line in machine.steps)


def _answers(machine: Machine) -> list[str]:
    return [line for line in machine.steps if line.startswith("answer ")]
