"""Server names: one normalisation for the match and for the log.

A name is COMPLETE only when its value equals the bytes on the wire with ASCII A-Z folded, save for one
trailing dot, which is dropped ("Example.COM." is "example.com": servers treat the two alike, RFC 6066 section
3 forbids the dot and clients send it all the same). The kernel looks up the folded bytes as they were sent
and leaves every name with a byte outside [A-Za-z0-9._-], an empty label or a trailing dot to the engine. So a
name that the kernel matches and the name that policy judged and the log shows are the same bytes; nothing
here may ever map one spelling to another.

That is why a U-label (raw UTF-8) is INVALID and is not converted: RFC 6066 allows A-labels only, and IDNA
2003 (the standard library's codec), IDNA 2008 and UTS 46 map the same characters to different names, so a
conversion would be a guess at what the server does. A-labels are compared as bytes and never decoded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_NAME = 253
"""Bytes of a name without its trailing dot (RFC 1035 section 3.1: 255 on the wire, with length and root
bytes)."""
MAX_LABEL = 63

# The underscore is no host name character (RFC 1123), but service names with it are reached over TLS every
# day. Hyphens may stand at the edge of a label: "r3---sn-x" and "-x" exist, and no server reads them as
# anything else.
_LABELS = re.compile(rb"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_BAD_BYTE = re.compile(rb"[^a-z0-9._-]")
# A last label that is a number, decimal or hex, makes inet_aton() and the WHATWG URL parser read an IPv4
# address ("127.1", "0x7f.1"); no top-level domain is numeric (RFC 3696 section 2).
_NUMERIC_END = re.compile(rb"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)", re.DOTALL)


def normalise(raw: bytes) -> tuple[str, str]:
    """Return (value, "") for a usable host name, or ("", reason) for anything else.

    `raw` is the host_name of server_name as it was sent. The reason is a short clause for the log.
    """
    folded = raw.lower()
    if folded.endswith(b"."):
        folded = folded[:-1]
    if len(folded) <= MAX_NAME and _LABELS.fullmatch(folded):
        if _NUMERIC_END.fullmatch(folded):
            return "", "an IPv4 address, not a host name"
        return folded.decode("ascii"), ""
    return "", _fault(folded)


def reversed_key(value: str) -> bytes:
    """Return the bytes that the kernel's name table is keyed by: "example.com" becomes b"moc.elpmaxe"."""
    return value.encode("ascii")[::-1]


@dataclass(frozen=True)
class NamePattern:
    """A name, or every name below one.

    "example.com" is that name alone. "*.example.com" is every name below it at any depth, and not example.com
    itself. `value` is a normalised name without "*.".
    """

    value: str
    below: bool = False

    @classmethod
    def parse(cls, text: str) -> NamePattern:
        """Read what `str` prints; case is folded and one trailing dot dropped. ValueError says what is
        wrong."""
        below = text.startswith("*.")
        rest = text[2:] if below else text
        if not rest.isascii():
            raise ValueError(f"{text!r} is not written in ASCII: give its A-label (xn--...)")
        value, reason = normalise(rest.encode("ascii"))
        if reason:
            raise ValueError(f"{text!r} is {reason}")
        return cls(value, below)

    def __str__(self) -> str:
        return f"*.{self.value}" if self.below else self.value

    def matches(self, name: str) -> bool:
        """Say whether a normalised name falls under the pattern."""
        return name.endswith("." + self.value) if self.below else name == self.value

    def key(self) -> bytes:
        """Return the reversed bytes; for "*." they end with the dot, so that they are a prefix of what
        matches."""
        return reversed_key(self.value) + (b"." if self.below else b"")


def _fault(folded: bytes) -> str:
    if not folded:
        return "an empty name"
    if b":" in folded:
        return "an IPv6 address or a name with a port, not a host name"
    bad = _BAD_BYTE.search(folded)
    if bad:
        return f"a name with the byte 0x{bad[0][0]:02x} at offset {bad.start()}"
    if len(folded) > MAX_NAME:
        return f"a name of {len(folded)} bytes, more than {MAX_NAME}"
    if any(len(label) > MAX_LABEL for label in folded.split(b".")):
        return f"a name with a label of more than {MAX_LABEL} bytes"
    return "a name with an empty label"
