"""JA4 against the values that its description publishes."""

from __future__ import annotations

import pytest

from engine.protocols.ja4 import fingerprint
from engine.protocols.tls import parse_hello
from tests.support import hello as build

CIPHERS = [
    0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013,
    0xc014, 0x009c, 0x009d, 0x002f, 0x0035,
]  # fmt: skip
EXTENSIONS = [
    0x001b, 0x0000, 0x0033, 0x0010, 0x4469, 0x0017, 0x002d, 0x000d, 0x0005, 0x0023,
    0x0012, 0x002b, 0xff01, 0x000b, 0x000a, 0x0015,
]  # fmt: skip
SCHEMES = [0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601]


def of(**changes: object) -> str:
    given: dict[str, object] = {
        "quic": False,
        "version": 0x0304,
        "ciphers": CIPHERS,
        "extensions": EXTENSIONS,
        "signature_algorithms": SCHEMES,
        "first_alpn": b"h2",
    }
    return fingerprint(**(given | changes))  # type: ignore[arg-type]


def test_the_published_example() -> None:
    assert of() == "t13d1516h2_8daaf6152771_e5627efa2ab1"


def test_grease_and_order_of_ciphers_and_extensions_change_nothing() -> None:
    assert of(ciphers=[0x0A0A, *reversed(CIPHERS)], extensions=[*reversed(EXTENSIONS), 0xFAFA]) == of()
    assert of(signature_algorithms=[0x2A2A, *SCHEMES]) == of()


def test_the_order_of_signature_algorithms_counts() -> None:
    assert of(signature_algorithms=SCHEMES[::-1]) != of()


@pytest.mark.parametrize(
    ("changes", "prefix"),
    [
        ({"quic": True}, "q13d1516h2_"),
        ({"version": 0x0303}, "t12d1516h2_"),
        ({"version": 0x0300}, "ts3d1516h2_"),
        ({"version": 0x7F17}, "t00d1516h2_"),
        ({"extensions": EXTENSIONS[2:]}, "t13i1514h2_"),
        ({"ciphers": list(range(1, 150))}, "t13d9916h2_"),
        ({"ciphers": []}, "t13d0016h2_000000000000_"),
        ({"first_alpn": b""}, "t13d151600_"),
        ({"first_alpn": b"http/1.1"}, "t13d1516h1_"),
        ({"first_alpn": b"h"}, "t13d1516hh_"),
        ({"first_alpn": b"\xab"}, "t13d1516ab_"),
        ({"first_alpn": b"\xab\xcd"}, "t13d1516ad_"),
        ({"first_alpn": b"0\xab"}, "t13d15163b_"),
        ({"first_alpn": b"01\xab\xcd"}, "t13d15163d_"),
        ({"first_alpn": b"0\xab\xcd1"}, "t13d151601_"),
    ],
)
def test_the_readable_part(changes: dict[str, object], prefix: str) -> None:
    assert of(**changes).startswith(prefix)


def test_without_extensions_the_last_part_is_zeros() -> None:
    reading = parse_hello(build.message(None, ciphers=(0x002F,)))
    assert reading.ja4.startswith("t12i010000_")
    assert reading.ja4.endswith("_000000000000")
