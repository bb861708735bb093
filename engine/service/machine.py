"""The kernel side as one engine holds it: what the loader pinned, opened; what is sent to it, in its own terms."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys

from engine.abi.numbers import Mode, PostureBit, Present
from engine.abi.records import Config as GateConfig
from engine.config import Config
from engine.config import Mode as ConfigMode
from engine.errors import KernelError
from engine.kernel.gate import KernelGate
from engine.kernel.hold import Hold
from engine.kernel.order import Detached, Loaded
from engine.kernel.pins import Pins
from engine.kernel.ring import Ring, open_ring
from engine.kernel.sockdiag import SockDiag
from engine.kernel.sources import KernelSources
from engine.model.posture import Condition, Posture

_HEARTBEAT_MAX = 2.0
"""Seconds without a heartbeat after which the gate counts the engine as absent."""
_HOLD_BYTES = 32 << 20


class Machine:
    """Gate, hold, ring and sock_diag of one instance. `loaded`: what the loader says stands."""

    def __init__(self, config: Config, pins: Pins, loaded: Loaded) -> None:
        self._config = config
        self.loaded = loaded
        self.gate = KernelGate(pins.maps)
        self.sources = KernelSources(pins.maps)
        # Nobody else may say of a frame that it has been judged.
        self._mark = 1 + secrets.randbelow(0xFFFFFFFF)
        self.hold = Hold(pins.held_device, _HOLD_BYTES, self._mark)
        # What was redirected before this engine had its socket is nobody's any more.
        self._taken_before = self.gate.hold_queue()[0]
        self.ring: Ring = open_ring(pins.maps / "events")
        self.diag = SockDiag()
        self._switched = False
        self._orders_before = self.gate.config().orders
        self.interfaces = {index: name for name, index in loaded.interfaces.items()}

    def took(self) -> None:
        """Tell the gate how many frames have left the hold queue.

        Never more than went in: Linux 5.10 makes several frames of a datagram buffer with segmentation offload, each of
        which would make room for one that the queue may not hold.
        """
        redirected = self.gate.hold_queue()[0]
        taken = self._taken_before + self.hold.counts.taken + self.hold.counts.lost
        self._taken_before -= max(0, taken - redirected)
        self.gate.take(min(taken, redirected))

    def switch(self, present: Present, changes: int) -> None:
        """Write the gate's configuration: from now on the mode that was asked for holds. Not over a panic: who took the
        gate down beside this engine meant it. `changes`: of what persons say, since this engine's start."""
        if self._switched and self.gate.config().mode == Mode.PANIC:
            return
        self._switched = True
        mode = Mode.ENFORCE if self._config.mode is ConfigMode.ENFORCE else Mode.OBSERVE
        self.gate.set_config(
            GateConfig(
                mode, self.loaded.hold_ifindex, int(present), open_bits(self._config.posture),
                self._config.hold.queue, int(_HEARTBEAT_MAX * 1e9), self._mark,
                (self._orders_before + changes) & 0xFFFFFFFF,
            )
        )  # fmt: skip

    async def guard_sources(self, *, wanted: bool) -> None:
        """Have the XDP program attached, or not. Raises KernelError when that fails."""
        change = [name for name, mode in self.loaded.xdp.items() if (mode != "off") is not wanted]
        if not change:
            return
        config = self._config
        order = {
            "state_dir": str(config.state_dir.resolve()), "interfaces": change, "mode": config.xdp_mode.value,
            "attach": wanted,
        }  # fmt: skip
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "engine.kernel.xdp", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await child.communicate(json.dumps(order).encode())
        answer = json.loads(out or b"{}")
        if "xdp" not in answer:
            raise KernelError(answer.get("error", "the process that attaches XDP ended without an answer"))
        # Not for one that went meanwhile.
        self.loaded.xdp.update({name: mode for name, mode in answer["xdp"].items() if name in self.loaded.xdp})

    def close(self) -> None:
        self.hold.close()
        self.diag.close()
        self.ring.close()
        self.sources.close()
        self.gate.close()


def detach(pins: Pins) -> Detached:
    """Take the gate down. Netlink costs 19 MiB, and the engine needs it only when it goes."""
    from engine.kernel.detach import detach as take_down  # noqa: PLC0415

    return take_down(pins)


def open_bits(posture: Posture) -> int:
    """Return the conditions that the gate itself meets and lets pass."""
    bits = {
        Condition.ENGINE_ABSENT: PostureBit.ENGINE_ABSENT,
        Condition.HOLD_QUEUE_FULL: PostureBit.HOLD_FULL,
        Condition.MAP_FULL: PostureBit.MAP_FULL,
        Condition.PARSER_MALFORMED: PostureBit.MALFORMED,
        Condition.FRAGMENT: PostureBit.FRAGMENT,
        Condition.UNKNOWN_INTERFACE: PostureBit.UNKNOWN_INTERFACE,
    }
    return int(sum(bit for condition, bit in bits.items() if posture[condition].passes))
