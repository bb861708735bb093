"""What Go's sumdb signed and proved, reproduced bit for bit. tests/interop/go writes the vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from audit.checkpoint import Head, SigningKey, VerifierKey, decode_base64, encode_base64
from audit.tree import (
    Range,
    check_consistency,
    check_inclusion,
    consistency_spans,
    inclusion_spans,
    leaf_hash,
    span_roots,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "audit"


def load(name: str) -> Any:
    vectors = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
    assert vectors, "an empty list of vectors proves nothing"
    return vectors


@pytest.fixture(scope="module")
def roots() -> list[bytes]:
    """Go's root of each tree size from 1 on."""
    return [decode_base64(root) for root in load("roots")]


@pytest.fixture(scope="module")
def leaves(roots: list[bytes]) -> list[bytes]:
    return [leaf_hash(f'{{"seq":{seq}}}'.encode()) for seq in range(len(roots))]


def test_keys_print_as_go_prints_them() -> None:
    for vector in load("keys"):
        signing = SigningKey.parse(vector["private"])
        assert signing.private_text() == vector["private"]
        assert str(signing.verifier) == vector["public"]
        assert VerifierKey.parse(vector["public"]) == signing.verifier


def test_heads_are_signed_as_go_signs_them() -> None:
    keys = [SigningKey.parse(vector["private"]) for vector in load("keys")]
    for vector in load("heads"):
        key = keys[vector["key"]]
        note = vector["note"].encode()
        assert Head.sign(key, vector["size"], decode_base64(vector["root"])).note() == note
        head = Head.parse(note)
        assert head.verifies(key.verifier)
        assert head.note() == note
        others = [other for other in keys if other is not key]
        assert not any(head.verifies(other.verifier) for other in others)


def test_roots_are_those_of_go(roots: list[bytes], leaves: list[bytes]) -> None:
    tree = Range()
    for leaf, root in zip(leaves, roots, strict=True):
        tree.append(leaf)
        assert tree.root() == root


def test_inclusion_proofs_are_those_of_go(roots: list[bytes], leaves: list[bytes]) -> None:
    for vector in load("inclusion"):
        index, size = vector["index"], vector["size"]
        proof = span_roots(leaves[:size], inclusion_spans(index, size))
        assert [encode_base64(node) for node in proof] == vector["proof"]
        assert check_inclusion(proof, index, leaves[index], size, roots[size - 1])


def test_consistency_proofs_are_those_of_go(roots: list[bytes], leaves: list[bytes]) -> None:
    for vector in load("consistency"):
        old, size = vector["old"], vector["size"]
        proof = span_roots(leaves[:size], consistency_spans(old, size))
        assert [encode_base64(node) for node in proof] == vector["proof"]
        assert check_consistency(proof, old, roots[old - 1], size, roots[size - 1])
