"""Proofs for people outside: C2SP texts made from the stored lines. FORMAT.md section 9."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from audit.checkpoint import HEAD_LINES, Head, VerifierKey, decode_base64, decode_decimal, encode_base64
from audit.errors import FormatError, RequestError
from audit.layout import Layout, read_lines, read_notes
from audit.tree import check_inclusion, consistency_spans, inclusion_spans, leaf_hash, span_roots

_TLOG_PROOF = "c2sp.org/tlog-proof@v1"


@dataclass(frozen=True)
class InclusionProof:
    """That a line is the entry `index` of the log that `head` covers (c2sp.org/tlog-proof, without extra
    data)."""

    index: int
    hashes: tuple[bytes, ...]
    head: Head

    @classmethod
    def parse(cls, data: bytes) -> InclusionProof:
        """Raise FormatError unless these are exactly the bytes that `text` prints."""
        try:
            lines = data.decode().split("\n")
        except UnicodeDecodeError as error:
            raise FormatError("The proof is not UTF-8.") from error
        if len(lines) < 3 + HEAD_LINES + 1 or lines[0] != _TLOG_PROOF or not lines[1].startswith("index "):
            raise FormatError(f"The proof should begin with {_TLOG_PROOF} and an index.")
        *hashes, empty = lines[2 : -HEAD_LINES - 1]
        if empty:
            raise FormatError("An empty line should stand between the proof and its head.")
        head = Head.parse("\n".join(lines[-HEAD_LINES - 1 :]).encode())
        return cls(decode_decimal(lines[1][len("index ") :]), tuple(decode_base64(line) for line in hashes), head)

    def text(self) -> bytes:
        first = f"{_TLOG_PROOF}\nindex {self.index}\n".encode()
        return first + _hash_lines(self.hashes) + b"\n" + self.head.note()

    def proves(self, line: bytes, key: VerifierKey) -> bool:
        """Tell whether this line (without its newline) was in the log when this key signed the head."""
        head = self.head
        if not head.verifies(key):
            return False
        return check_inclusion(self.hashes, self.index, leaf_hash(line), head.size, head.root)


def _hash_lines(hashes: Sequence[bytes]) -> bytes:
    return "".join(f"{encode_base64(node)}\n" for node in hashes).encode()


def last_head(layout: Layout) -> Head:
    """Return the last whole head of a log. Raise RequestError when there is none, FormatError when it is
    damaged."""
    for segment in reversed(layout.segments()):
        found = b""
        for note, whole in read_notes(segment.heads):
            if whole:
                found = note
        if found:
            return Head.parse(found)
    raise RequestError(f"There is no head in {layout.log}.", hint="Give the state directory of an engine that has run.")


def _leaves(layout: Layout) -> Iterator[bytes]:
    for segment in layout.segments():
        for line, whole in read_lines(segment.lines):
            if whole:
                yield leaf_hash(line)


def entry_line(layout: Layout, index: int) -> bytes:
    """Return a stored line without its newline. Raise RequestError when there is none."""
    for segment in reversed(layout.segments()):
        if segment.first <= index:
            for at, (line, whole) in enumerate(read_lines(segment.lines), segment.first):
                if at == index and whole:
                    return line
            break
    raise RequestError(f"There is no entry {index} in {layout.log}.", hint="See `sallyport audit head` for the size.")


def prove_inclusion(layout: Layout, index: int) -> InclusionProof:
    """Return the proof of one entry under the last head. Raise RequestError or FormatError."""
    head = last_head(layout)
    hashes = span_roots(_leaves(layout), inclusion_spans(index, head.size))
    proof = InclusionProof(index, tuple(hashes), head)
    if not check_inclusion(hashes, index, leaf_hash(entry_line(layout, index)), head.size, head.root):
        raise FormatError(
            f"The lines of {layout.log} do not have the root of the last head.",
            hint="`sallyport audit verify` lists what is wrong.",
        )
    return proof


def prove_consistency(layout: Layout, old: int) -> bytes:
    """Return the proof that the last head extends the log of `old` entries (body of a c2sp.org/tlog-witness
    request)."""
    head = last_head(layout)
    hashes = span_roots(_leaves(layout), consistency_spans(old, head.size))
    return f"old {old}\n".encode() + _hash_lines(hashes) + b"\n" + head.note()
