"""Can this machine run guests by itself (KVM), or must QEMU emulate them (TCG)? Found out by a boot.

That /dev/kvm exists proves nothing: inside some virtual machines it does, and the first guest hangs for ever.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from vagrant.vm import initramfs
from vagrant.vm.kernels import Kernel
from vagrant.vm.machine import Spec, running

PROBE_SECONDS = 20
KVM, TCG = "kvm", "tcg"

_INIT = b"""#!/bin/busybox sh
/bin/busybox mount -t devtmpfs devtmpfs /dev
echo started >/dev/ttyS2
/bin/busybox poweroff -f
"""


def choose(kernel: Kernel, cache: Path, say: Callable[[str], None]) -> str:
    """Return `kvm` or `tcg`. The answer is kept until this machine is started anew."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return TCG
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    kept = cache / "acceleration"
    if kept.exists() and (words := kept.read_text().split())[:1] == [boot] and words[1:] in ([KVM], [TCG]):
        return words[1]
    say(f"there is /dev/kvm; trying whether a guest runs on it (at most {PROBE_SECONDS} s)")
    found = KVM if _boots(kernel) else TCG
    say("KVM works" if found == KVM else "KVM does not work here: the machines are emulated (TCG), which takes longer")
    kept.write_text(f"{boot} {found}\n")
    return found


def _boots(kernel: Kernel) -> bool:
    with tempfile.TemporaryDirectory(prefix="sallyport-vm-") as work:
        initrd = Path(work) / "initrd"
        initrd.write_bytes(
            kernel.initrd.read_bytes() + initramfs.newc([initramfs.file("init", _INIT, executable=True)])
        )
        with running(Spec(kernel.image, initrd, accelerator=KVM, cpu="host", megabytes=256)) as machine:
            until = time.monotonic() + PROBE_SECONDS
            machine.watch(until, lambda _: None, lambda one: bool(one.steps) or one.ended())
            return bool(machine.steps)
