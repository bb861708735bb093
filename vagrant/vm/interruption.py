"""A signal that ends the lab, as an exception: so what is open is closed, and the machines go."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """Somebody ended the lab. No LabError: nothing failed, and nothing on the way may take it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """Raise Interrupted at the first signal, and let nothing disturb the tidying after it: timeout(1) signals its
    program twice, once by itself and once with its group, and a second Ctrl-C is soon pressed."""

    def leave(number: int, frame: object) -> None:
        for each in _ENDING:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number)

    before = {each: signal.getsignal(each) for each in _ENDING}
    for each, handler in before.items():
        # What a shell starts in the background ignores Ctrl-C: that is for the foreground.
        if handler is not signal.SIG_IGN:
            signal.signal(each, leave)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
