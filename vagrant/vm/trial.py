"""One trial: a kernel, a root tree and the checkout become a machine that runs the steps asked for."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vagrant.vm import checkout, initramfs
from vagrant.vm.errors import BootError, GuestError, LateError, UsageError
from vagrant.vm.kernels import Kernel
from vagrant.vm.machine import Disk, Machine, Spec, emulated_cpu, running, wait_for_start

GUEST = Path(__file__).parent / "guest"

JOB_FILES = ("boot", "job", "findings")
"""What a guest needs that runs one job and is gone."""
MACHINE_FILES = ("machine", "agent")
"""What a guest needs that comes up as a machine does and carries out what a story says."""

STEPS = ("survey", "bypass", "kernel", "lab", "demo")
"""What a machine can be asked for: what the kernel offers and how large the programs are to its verifier, the bypass
suite, the tests that need a kernel, the lab, and the README's commands on a clean system."""
MATRIX_STEPS = ("survey", "bypass", "kernel", "lab")

DEFAULT_STEPS = ("kernel", "lab")
DEFAULT_TESTS = ("tests/kernel",)
BOOTS = 3
"""Only a boot that never reached its first process is tried again: what came later is a result."""

READY_SECONDS = 180
OFF_SECONDS = 20


@dataclass
class Outcome:
    """How a trial ended. `code`: the job's exit code. `findings`: what the steps found out, by step."""

    code: int
    release: str
    seconds: float = 0.0
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)


def check_steps(steps: Sequence[str]) -> None:
    """Raise UsageError for a step that there is not."""
    if wrong := [step for step in steps if step not in STEPS]:
        raise UsageError(f"There is no step {wrong[0]}.", hint=f"There are: {', '.join(STEPS)}.")


def check_tests(tests: Sequence[str], root: Path) -> None:
    """Raise UsageError for a test file that is not in the checkout: better now than after a boot."""
    for test in tests:
        path = test.partition("::")[0]
        if not path or path.startswith(("/", "-")) or ".." in Path(path).parts or not (root / path).exists():
            raise UsageError(f'There is no test "{path}" in the checkout.', hint="Give paths such as tests/kernel.")


def run(
    kernel: Kernel,
    tree: Path | None,
    root: Path,
    accelerator: str,
    *,
    steps: Sequence[str],
    tests: Sequence[str],
    limit: float,
    say: Callable[[str], None],
    told: Callable[[bytes], None],
) -> Outcome:
    """Run the steps; what they say goes to `told` as it comes. Raises an error of the family when no result came.

    Without a `tree` the machine has this one's own root file system, and in it the checkout as it is set up here.
    """
    check_steps(steps)
    check_tests(tests, root)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sallyport-vm-") as folder:
        work = Path(folder)
        settings: dict[str, Sequence[str]] = {"steps": steps, "tests": tests}
        if tree is None:
            settings["checkout"] = [str(root)]
            disks = [kernel.modules]
        else:
            checkout.pack(root, work / "checkout.tar")
            disks = [tree, kernel.modules, work / "checkout.tar"]
        (work / "initrd").write_bytes(kernel.initrd.read_bytes() + guest_part(settings))
        spec = Spec(
            kernel.image,
            work / "initrd",
            tuple(Disk(image) for image in disks),
            accelerator,
            "host" if accelerator == "kvm" else emulated_cpu(kernel.number),
            shares_root=tree is None,
        )
        for attempt in range(1, BOOTS + 1):
            try:
                outcome = _once(spec, kernel, limit, say, told)
                break
            except BootError as error:
                if attempt == BOOTS:
                    raise
                say(f"{error} Trying again ({attempt + 1} of {BOOTS}).")
    outcome.seconds = round(time.monotonic() - started, 1)
    return outcome


def guest_part(settings: dict[str, Sequence[str]], files: Sequence[str] = JOB_FILES) -> bytes:
    """What a run adds to the kernel's initramfs: some of the guest's scripts, and for each setting a file of lines."""
    members = [initramfs.directory("guest"), initramfs.file("init", (GUEST / "init").read_bytes(), executable=True)]
    members += [initramfs.file(f"guest/{name}", (GUEST / name).read_bytes(), executable=True) for name in files]
    members += [
        initramfs.file(f"guest/{name}", "".join(f"{line}\n" for line in lines).encode())
        for name, lines in settings.items()
    ]
    return initramfs.newc(members)


def _once(
    spec: Spec, kernel: Kernel, limit: float, say: Callable[[str], None], told: Callable[[bytes], None]
) -> Outcome:
    begun = time.monotonic()
    with running(spec) as machine:
        wait_for_start(machine, told)
        if not machine.watch(begun + READY_SECONDS, told, lambda one: len(one.steps) > 1):
            raise _dead(machine, "came to its first process and no further")
        if machine.steps[1].startswith("ready"):
            say(f"up after {time.monotonic() - begun:.0f} s: Linux {kernel.release} ({spec.accelerator}, {spec.cpu})")
        if not machine.watch(begun + limit, told, lambda one: _last(one) is not None):
            if machine.ended():
                raise _dead(machine, "died while it worked")
            raise LateError(
                f"The machine was not done within {limit:.0f} seconds.",
                hint="Give it more (--limit), or fewer tests. It was switched off.",
            )
        kind, _, rest = (_last(machine) or "").partition(" ")
        if kind == "failed":
            raise GuestError(f"The guest gave up: {rest}.", hint=f"Console:\n    {machine.last_words()}")
        # What is still on its way over the other lines comes before the machine is off.
        machine.watch(time.monotonic() + OFF_SECONDS, told, lambda one: False)
        return Outcome(int(rest), kernel.release, findings=parse_findings(machine.findings))


def _last(machine: Machine) -> str | None:
    """The line that ends a trial, once it is there."""
    return next((line for line in machine.steps if line.startswith(("exit ", "failed "))), None)


def _dead(machine: Machine, how: str) -> LateError:
    return LateError(f"The machine {how}.", hint=f"The console's last lines:\n    {machine.last_words()}")


def parse_findings(lines: Sequence[str]) -> dict[str, dict[str, Any]]:
    """One JSON object a line, with the step that it belongs to; what is none is left out."""
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        try:
            document = json.loads(line)
        except ValueError:
            continue
        if isinstance(document, dict) and isinstance(step := document.pop("step", None), str):
            found.setdefault(step, {}).update(document)
    return found
