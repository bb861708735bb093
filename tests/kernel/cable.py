"""The guarded wire seen from both ends: what of an attempt gets out, and that the rest was refused."""

from __future__ import annotations

from collections.abc import Callable

from tests.kernel.host import Host, awaited
from tests.kernel.lab import DEVICE, FAR_DEVICE
from tests.support.netns import Wire


class Cable:
    """Both ends of the wire of a host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.near = Wire(host.inside, DEVICE)
        self.far = Wire(host.outside, FAR_DEVICE)

    def out(self, data: bytes) -> list[bytes]:
        """Return the frames with `data` in them that have come out since the last time."""
        return [frame for frame in self.far.until_mark(self.near.mark()) if data in frame]

    def lets_out(self, data: bytes, send: Callable[[], object]) -> bool:
        """Have something sent, and wait until `data` has come out or one more refusal has been told."""
        before = len(self._host.engine.lines("refused"))
        send()
        out: list[bytes] = []

        def over() -> bool:
            refused = len(self._host.engine.lines("refused")) > before
            out.extend(self.out(data))
            return bool(out) or refused

        awaited(over, self._host.engine.told)
        return bool(out)

    def close(self) -> None:
        self.near.close()
        self.far.close()
