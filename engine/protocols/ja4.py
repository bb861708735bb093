"""JA4, the TLS client fingerprint by FoxIO (technical_details/JA4.md in FoxIO-LLC/ja4; JA4 itself is BSD
3-Clause).

Values reserved by GREASE (RFC 8701) are ignored wherever they stand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

GREASE = frozenset(value << 8 | value for value in range(0x0A, 0x100, 0x10))

_VERSIONS = {
    0x0304: "13", 0x0303: "12", 0x0302: "11", 0x0301: "10", 0x0300: "s3", 0x0002: "s2",
    0xFEFF: "d1", 0xFEFD: "d2", 0xFEFC: "d3",
}  # fmt: skip
_SERVER_NAME, _ALPN = 0x0000, 0x0010
_NOTHING = "0" * 12


def fingerprint(
    *,
    quic: bool,
    version: int,
    ciphers: Sequence[int],
    extensions: Sequence[int],
    signature_algorithms: Sequence[int],
    first_alpn: bytes,
) -> str:
    """Return the JA4 of one hello, e.g. "t13d1516h2_8daaf6152771_e5627efa2ab1".

    `version`: the highest of supported_versions, or the legacy version. Values in the order they were sent.
    """
    suites = [value for value in ciphers if value not in GREASE]
    kinds = [value for value in extensions if value not in GREASE]
    hashed = sorted(kind for kind in kinds if kind not in (_SERVER_NAME, _ALPN))
    schemes = [value for value in signature_algorithms if value not in GREASE]
    tail = _listed(hashed)
    if schemes:
        tail += "_" + _listed(schemes)
    return (
        f"{'q' if quic else 't'}{_VERSIONS.get(version, '00')}{'d' if _SERVER_NAME in kinds else 'i'}"
        f"{min(len(suites), 99):02}{min(len(kinds), 99):02}{_alpn(first_alpn)}"
        f"_{_digest(_listed(sorted(suites)))}_{_digest(tail) if hashed else _NOTHING}"
    )


def _listed(values: list[int]) -> str:
    return ",".join(["%04x" % value for value in values])  # noqa: UP031 (a third of the time of an f-string here)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:12] if text else _NOTHING


def _alpn(protocol: bytes) -> str:
    if not protocol:
        return "00"
    ends = protocol[:1] + protocol[-1:]
    if ends.isalnum():
        return ends.decode("ascii")
    text = protocol.hex()
    return text[0] + text[-1]
