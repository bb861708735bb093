"""What a selftest saw, signed with the key of the audit log: a C2SP signed note (c2sp.org/signed-note). No IO.

    sallyport selftest
    {"kernel": ..., "passed": true, "proofs": [...], "time": ..., "version": ...}

    — NAME SIGNATURE

The first line keeps the statement apart from what else this key signs: a head of the log begins with the log's name,
which can hold no space (audit/FORMAT.md section 6), so no selftest can pass for a head, nor a head for a selftest.
"""

from __future__ import annotations

import json
from typing import Any

from audit.checkpoint import SigningKey, VerifierKey, decode_base64, encode_base64
from audit.errors import FormatError
from engine.errors import InputError

TITLE = "sallyport selftest"
_SIGNATURE_BYTES = 4 + 64
"""Key id and Ed25519 signature."""


def sign(document: dict[str, Any], key: SigningKey) -> bytes:
    """Return the signed note of a document."""
    # ASCII alone: a note may hold no control characters, and json escapes them with everything else.
    text = f"{TITLE}\n{json.dumps(document, sort_keys=True)}\n".encode()
    name = key.verifier.name
    return text + f"\n\u2014 {name} {encode_base64(key.verifier.id + key.sign(text))}\n".encode()


def verify(note: bytes, key: VerifierKey) -> dict[str, Any]:
    """Return the document of a note that this key signed. InputError when it is not one, or the signature is not the
    key's.

    1. The note has five lines: title, document, an empty one, a signature, and nothing behind its newline.
    2. The signature line names the key.
    3. The signature is by that key id, over the bytes up to the empty line.
    4. Only then is the document read.
    """
    try:
        title, document, empty, signature_line, end = note.decode().split("\n")
        dash, name, encoded = signature_line.split(" ")
        signature = decode_base64(encoded)
    except (ValueError, FormatError) as error:
        raise _not_one() from error
    if (title, empty, end, dash) != (TITLE, "", "", "\u2014") or len(signature) != _SIGNATURE_BYTES:
        raise _not_one()
    if name != key.name or signature[:4] != key.id:
        raise InputError(
            f"The selftest was signed by another key than {key.name}",
            hint="Give the key that was published for the log of the host that it ran on, with --key.",
        )
    text = f"{title}\n{document}\n".encode()
    if not key.verifies(signature[4:], text):
        raise InputError("The signature does not belong to this selftest: one of them was changed")
    read: dict[str, Any] = json.loads(document)
    return read


def _not_one() -> InputError:
    return InputError("This is no signed selftest", hint="It should be what `sallyport selftest --note FILE` wrote.")
