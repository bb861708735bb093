"""Heads: C2SP checkpoints (c2sp.org/tlog-checkpoint) in signed notes (c2sp.org/signed-note), Ed25519. No IO.

Every parser here accepts one form only, the one that its printer writes: what would print differently is no
head.
"""

from __future__ import annotations

import base64
import binascii
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from audit.errors import FormatError
from audit.tree import HASH_SIZE

_ED25519 = b"\x01"  # the signature type that the note specification assigns
_SIGNATURE_SIZE = 64
_KEY_ID_SIZE = 4
_DASH = "\u2014 "
HEAD_LINES = 5
"""Newlines in every head of this form: origin, size, root, empty, signature."""


def decode_base64(text: str) -> bytes:
    """Decode canonical base64 (RFC 4648 section 4: padded, no blanks, unused bits 0). Raise FormatError."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError("This is not base64.") from error
    if encode_base64(data) != text:
        raise FormatError("This base64 is not in its canonical form.")
    return data


def encode_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def decode_decimal(text: str) -> int:
    """Decode an ASCII decimal without sign, blanks or leading zeros. Raise FormatError."""
    if not (text.isascii() and text.isdigit()) or (text[0] == "0" and text != "0") or len(text) > 19:
        raise FormatError("This is not a plain decimal number.")
    return int(text)


def check_name(name: str) -> str:
    """Return the name of a log or key if the note specification allows it. Raise FormatError."""
    allowed = all(char != "+" and not char.isspace() and unicodedata.category(char)[0] not in "CZ" for char in name)
    if not name or not allowed:
        raise FormatError("A log's name must not be empty nor hold spaces, plus signs or control characters.")
    return name


def key_id(name: str, public: bytes) -> bytes:
    """Return the 4 bytes that name a key in a signature."""
    return sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:_KEY_ID_SIZE]


@dataclass(frozen=True)
class VerifierKey:
    """A public key with its name: `NAME+ID+BASE64`, as Go's sumdb/note writes it."""

    name: str
    public: bytes

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Raise FormatError unless the text is exactly what `str` prints."""
        parts = text.split("+", 2)
        if len(parts) != 3:
            raise FormatError("This is not a verifier key: it should be NAME+ID+BASE64.")
        name, _, encoded = parts
        data = decode_base64(encoded)
        if data[:1] != _ED25519 or len(data) != 1 + 32:
            raise FormatError("This is not an Ed25519 verifier key.")
        key = cls(check_name(name), data[1:])
        if str(key) != text:
            raise FormatError("The verifier key's id does not belong to its name and its public key.")
        return key

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{encode_base64(_ED25519 + self.public)}"

    @cached_property
    def id(self) -> bytes:
        return key_id(self.name, self.public)

    @cached_property
    def _ed25519(self) -> Ed25519PublicKey:
        return Ed25519PublicKey.from_public_bytes(self.public)

    def verifies(self, signature: bytes, text: bytes) -> bool:
        try:
            self._ed25519.verify(signature, text)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True)
class SigningKey:
    """A private key with its name: `PRIVATE+KEY+NAME+ID+BASE64`, as Go's sumdb/note writes it."""

    verifier: VerifierKey
    _seed: bytes
    sign: Callable[[bytes], bytes]

    def __repr__(self) -> str:
        return f"SigningKey({self.verifier.name!r})"  # the seed must not end up in a traceback

    @classmethod
    def from_seed(cls, name: str, seed: bytes) -> SigningKey:
        """`seed`: 32 random bytes. Raise FormatError on a bad name or length."""
        if len(seed) != 32:
            raise FormatError("An Ed25519 seed has 32 bytes.")
        private = Ed25519PrivateKey.from_private_bytes(seed)
        return cls(VerifierKey(check_name(name), private.public_key().public_bytes_raw()), seed, private.sign)

    @classmethod
    def parse(cls, text: str) -> SigningKey:
        """Raise FormatError unless the text is exactly what `private_text` prints."""
        parts = text.split("+", 4)
        if len(parts) != 5 or parts[:2] != ["PRIVATE", "KEY"]:
            raise FormatError("This is not a private key: it should be PRIVATE+KEY+NAME+ID+BASE64.")
        data = decode_base64(parts[4])
        if data[:1] != _ED25519:
            raise FormatError("This is not an Ed25519 private key.")
        key = cls.from_seed(parts[2], data[1:])
        if key.private_text() != text:
            raise FormatError("The private key's id does not belong to its name and its seed.")
        return key

    def private_text(self) -> str:
        verifier = self.verifier
        return f"PRIVATE+KEY+{verifier.name}+{verifier.id.hex()}+{encode_base64(_ED25519 + self._seed)}"


@dataclass(frozen=True)
class Head:
    """A signed tree head: this log (`origin`) had this `root` at this `size`."""

    origin: str
    size: int
    root: bytes
    key_id: bytes
    signature: bytes

    @classmethod
    def sign(cls, key: SigningKey, size: int, root: bytes) -> Head:
        text = _text(key.verifier.name, size, root)
        return cls(key.verifier.name, size, root, key.verifier.id, key.sign(text))

    @classmethod
    def parse(cls, note: bytes) -> Head:
        """Read one head. Raise FormatError unless these are exactly the bytes that `note` prints."""
        try:
            lines = note.decode().split("\n")
        except UnicodeDecodeError as error:
            raise FormatError("The head is not UTF-8.") from error
        if len(lines) != HEAD_LINES + 1 or lines[3] or lines[5]:
            raise FormatError("A head has five lines: origin, size, root, an empty one, the signature.")
        origin, size_text, root_text, _, signature_line, _ = lines
        signer, _, signature_text = signature_line.rpartition(" ")
        if signer != _DASH + origin:
            raise FormatError("The head's signature line does not name the log.")
        size = decode_decimal(size_text)
        root = decode_base64(root_text)
        signature = decode_base64(signature_text)
        if size == 0 or len(root) != HASH_SIZE or len(signature) != _KEY_ID_SIZE + _SIGNATURE_SIZE:
            raise FormatError("The head's size, root or signature has the wrong length.")
        return cls(check_name(origin), size, root, signature[:_KEY_ID_SIZE], signature[_KEY_ID_SIZE:])

    def note(self) -> bytes:
        """Return the signed note: five lines."""
        signature = encode_base64(self.key_id + self.signature)
        text = _text(self.origin, self.size, self.root)
        return text + f"\n{_DASH}{self.origin} {signature}\n".encode()

    def verifies(self, key: VerifierKey) -> bool:
        """Tell whether this key signed this head under its own name."""
        if (self.origin, self.key_id) != (key.name, key.id):
            return False
        return key.verifies(self.signature, _text(self.origin, self.size, self.root))


def _text(origin: str, size: int, root: bytes) -> bytes:
    return f"{origin}\n{size}\n{encode_base64(root)}\n".encode()
