"""Every attempt, by what it uses. A new one is a function and a row; nothing else has to know of it."""

from __future__ import annotations

from engine.selftest.attempt import Attempt
from engine.selftest.attempts import callers, calls, datagrams, headers, hellos, packets, places, programs, sockets

ALL: tuple[Attempt, ...] = (
    *calls.ATTEMPTS,
    *datagrams.ATTEMPTS,
    *sockets.ATTEMPTS,
    *hellos.ATTEMPTS,
    *programs.ATTEMPTS,
    *places.ATTEMPTS,
    *packets.ATTEMPTS,
    *headers.ATTEMPTS,
    *callers.ATTEMPTS,
)
