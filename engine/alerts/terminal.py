"""Alerts as lines on a terminal, where the text was chosen by whoever is being denied.

A server name or a path can hold escape sequences that recolour, overwrite or type into the terminal that
shows them, and invisible or direction-changing characters that make one name look like another. So
everything that is not plainly visible is written as its code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from engine.alerts.alert import Alert, Severity
from engine.alerts.sink import Courier, UndeliverableError

# Printable by category, and still invisible: fillers, joiners and selectors (Default_Ignorable_Code_Point
# that are letters or marks), and the blank braille pattern. All others of that property are category Cf,
# which str.isprintable() refuses already, as it does C0, C1, bidirectional controls, zero-width characters
# and surrogates.
_INVISIBLE = frozenset(
    map(chr, (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x2800, 0x3164, 0xFFA0))
) | frozenset(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))

_COLOURS = {Severity.INFO: "36", Severity.WARNING: "33", Severity.CRITICAL: "1;31"}

LINE_BYTES = 4096
"""PIPE_BUF: a write up to this size is not mixed with those of other processes."""


def escape(text: str) -> str:
    """Return the text with every character that is not plainly visible, and the backslash, as its code."""
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable() and character not in _INVISIBLE:
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def line(alert: Alert, *, colour: bool) -> str:
    """Return the alert as one line of at most LINE_BYTES bytes, with the newline."""
    head = f"{alert.severity.value.upper()} {alert.kind.value}"
    if colour:
        head = f"\x1b[{_COLOURS[alert.severity]}m{head}\x1b[0m"
    parts = [f"{alert.timestamp()[:23]}Z {head}: {escape(alert.summary)}"]
    if alert.count > 1 or alert.repeats:
        parts.append(f"({alert.count} more)")
    if alert.rule:
        parts.append(f"rule={escape(alert.rule)}")
    parts.append(f"generation={alert.generation}")
    document: Mapping[str, object] = alert.document()["data"]["details"]
    parts += [f"{escape(key)}={_value(value)}" for key, value in document.items()]
    if alert.lost_before:
        parts.append(f"[{alert.lost_before} alerts before this one were lost]")
    encoded = " ".join(parts).encode()
    if len(encoded) >= LINE_BYTES:
        return encoded[: LINE_BYTES - 5].decode(errors="ignore") + " ...\n"
    return encoded.decode() + "\n"


def _value(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    shown = escape(text)
    return shown if shown and " " not in shown and '"' not in shown else f'"{shown}"'


class TerminalSink:
    """Writes to a file descriptor, standard error by default. Colours only on a terminal, and not with
    NO_COLOR (no-color.org). The writing is done in a thread: a terminal that is stopped (Ctrl-S) or a pipe
    that nobody reads blocks the writer, and must not block the engine."""

    name = "terminal"

    def __init__(self, descriptor: int = 2, *, environment: Mapping[str, str] | None = None) -> None:
        variables = os.environ if environment is None else environment
        wanted = not variables.get("NO_COLOR") and variables.get("TERM") != "dumb"
        self._descriptor = descriptor
        self._colour = wanted and os.isatty(descriptor)
        self._courier = Courier("alerts-terminal")

    async def deliver(self, alert: Alert) -> None:
        data = line(alert, colour=self._colour).encode()
        await self._courier.run(lambda: self._write(data))

    async def close(self) -> None:
        self._courier.close()

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            raise UndeliverableError(f"The terminal took no alert: {error.strerror}.") from error
