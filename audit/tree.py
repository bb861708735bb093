"""The Merkle tree of RFC 6962 section 2.1 (SHA-256): append, roots and proofs. Values only, no IO.

`Range` is a compact range: the roots of the perfect subtrees that the first `size` leaves fall into, at most
one for each bit of the size. It is all that a writer has to keep, and all that a verifier needs for one pass
over a log of any length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

from audit.errors import FormatError, RequestError

HASH_SIZE = 32
EMPTY_ROOT = sha256(b"").digest()


def leaf_hash(line: bytes) -> bytes:
    """Return the hash of a leaf: `line` is the entry as stored, without its newline."""
    return sha256(b"\x00" + line).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


class Range:
    """The first `size` leaves, as the roots of their perfect subtrees, largest first."""

    __slots__ = ("_nodes", "_size")

    def __init__(self, size: int = 0, nodes: Sequence[bytes] = ()) -> None:
        """Raise FormatError unless there is one 32-byte node for each bit that is set in `size`."""
        if size < 0 or len(nodes) != size.bit_count() or any(len(node) != HASH_SIZE for node in nodes):
            raise FormatError(f"{len(nodes)} hashes do not make a tree of {size} entries.")
        self._size = size
        self._nodes = list(nodes)

    @property
    def size(self) -> int:
        return self._size

    @property
    def nodes(self) -> tuple[bytes, ...]:
        return tuple(self._nodes)

    def copy(self) -> Range:
        return Range(self._size, self._nodes)

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash. Two subtrees of one height become one: amortised one node hash a leaf."""
        nodes = self._nodes
        rest = self._size
        while rest & 1:
            leaf = sha256(b"\x01" + nodes.pop() + leaf).digest()
            rest >>= 1
        nodes.append(leaf)
        self._size += 1

    def extend(self, leaves: Iterable[bytes]) -> None:
        for leaf in leaves:
            self.append(leaf)

    def root(self) -> bytes:
        """Return the root over all leaves so far."""
        if not self._nodes:
            return EMPTY_ROOT
        root = self._nodes[-1]
        for node in reversed(self._nodes[:-1]):
            root = node_hash(node, root)
        return root


Span = tuple[int, int]
"""Leaves from the first to before the second."""


def _split(count: int) -> int:
    """The largest power of two smaller than `count`, which is 2 or more."""
    return 1 << ((count - 1).bit_length() - 1)


def inclusion_spans(index: int, size: int) -> list[Span]:
    """Return the subtrees whose roots make the inclusion proof (RFC 6962 section 2.1.1), sibling first.

    Raise RequestError when the tree has no such leaf.
    """
    if not 0 <= index < size:
        raise RequestError(
            f"Entry {index} is not in a tree of {size} entries.",
            hint="Choose an entry that a head covers already.",
        )
    spans: list[Span] = []
    low, high = 0, size
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            spans.append((middle, high))
            high = middle
        else:
            spans.append((low, middle))
            low = middle
    return spans[::-1]


def consistency_spans(old: int, size: int) -> list[Span]:
    """Return the subtrees whose roots make the consistency proof (RFC 6962 section 2.1.2).

    Raise RequestError unless 0 < `old` <= `size`.
    """
    if not 0 < old <= size:
        raise RequestError(
            f"There is no proof from {old} to {size} entries.",
            hint="The old size must be at least 1 and not above that of the last head.",
        )
    spans: list[Span] = []
    low, high = 0, size
    whole = True  # SUBPROOF's flag: the old tree is a subtree of its own, whose root the asker knows already
    while old != high:
        middle = low + _split(high - low)
        if old <= middle:
            spans.append((middle, high))
            high = middle
        else:
            spans.append((low, middle))
            low = middle
            whole = False
    if not whole:
        spans.append((low, high))
    return spans[::-1]


def span_roots(leaves: Iterable[bytes], spans: Sequence[Span]) -> list[bytes]:
    """Return the root of each span in one pass over the leaf hashes, which begin with leaf 0.

    Spans must not overlap; those of a proof never do. Raise FormatError when the leaves end too early.
    """
    following = iter(sorted(range(len(spans)), key=lambda position: spans[position]))
    roots: dict[int, bytes] = {}
    current = next(following, None)
    part = Range()
    for index, leaf in enumerate(leaves):
        if current is None:
            break
        low, high = spans[current]
        if index < low:
            continue
        part.append(leaf)
        if index + 1 == high:
            roots[current] = part.root()
            part = Range()
            current = next(following, None)
    if len(roots) != len(spans):
        raise FormatError("The log ends before the last entry of the proof.")
    return [roots[position] for position in range(len(spans))]


def check_inclusion(proof: Sequence[bytes], index: int, leaf: bytes, size: int, root: bytes) -> bool:
    """Tell whether `leaf` is the leaf `index` of the tree of `size` leaves with this root."""
    if not 0 <= index < size:
        return False
    spans = inclusion_spans(index, size)
    if len(spans) != len(proof):
        return False
    node = leaf
    for (_, high), sibling in zip(spans, proof, strict=True):
        node = node_hash(sibling, node) if high <= index else node_hash(node, sibling)
    return node == root


def check_consistency(proof: Sequence[bytes], old: int, old_root: bytes, size: int, root: bytes) -> bool:
    """Tell whether the tree of `old` leaves is a prefix of that of `size` leaves, given both roots.

    Both roots are computed from the proof, as RFC 9162 section 2.1.4.2 does it.
    """
    if not 0 < old <= size:
        return False
    if old == size:
        return not proof and old_root == root
    nodes = list(proof)
    if old & (old - 1) == 0:
        # The old tree is perfect: its root is the first node, and the proof leaves it out.
        nodes.insert(0, old_root)
    if not nodes:
        return False
    first, last = old - 1, size - 1
    while first & 1:
        first >>= 1
        last >>= 1
    before = after = nodes[0]
    for node in nodes[1:]:
        if last == 0:
            return False
        if first & 1 or first == last:
            before, after = node_hash(node, before), node_hash(node, after)
            while first and not first & 1:
                first >>= 1
                last >>= 1
        else:
            after = node_hash(after, node)
        first >>= 1
        last >>= 1
    return last == 0 and before == old_root and after == root
