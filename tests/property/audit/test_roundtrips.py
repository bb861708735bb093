"""Parsers and printers: what is printed parses back, and what parses prints as it was."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import entry, ocsf
from audit.checkpoint import Head, SigningKey, VerifierKey, check_name
from audit.errors import FormatError
from audit.proof import InclusionProof
from audit.recovery import parse_range, print_range
from audit.terminal import escape, escape_json, quote
from audit.tree import (
    Range,
    check_consistency,
    check_inclusion,
    consistency_spans,
    inclusion_spans,
    leaf_hash,
    span_roots,
)


def is_name(text: str) -> bool:
    try:
        check_name(text)
    except FormatError:
        return False
    return True


names = st.text(min_size=1, max_size=20).filter(is_name)
hashes = st.binary(min_size=32, max_size=32)
keys = st.builds(SigningKey.from_seed, names, hashes)
heads = st.builds(Head.sign, keys, st.integers(1, 2**62), hashes)


@given(keys)
def test_a_key_survives_its_text(key: SigningKey) -> None:
    assert SigningKey.parse(key.private_text()).private_text() == key.private_text()
    assert VerifierKey.parse(str(key.verifier)) == key.verifier


@given(heads)
def test_a_head_survives_its_note(head: Head) -> None:
    assert Head.parse(head.note()) == head


@given(heads, st.data())
def test_a_changed_note_is_refused_or_is_another_head(head: Head, data: st.DataObject) -> None:
    note = bytearray(head.note())
    note[data.draw(st.integers(0, len(note) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        changed = Head.parse(bytes(note))
    except FormatError:
        return
    assert changed != head
    assert changed.note() == bytes(note)


@given(st.binary(max_size=300))
def test_bytes_that_parse_as_a_head_are_its_note(data: bytes) -> None:
    with pytest.raises(FormatError):
        Head.parse(data)  # nobody guesses a root and a signature line by chance
    with pytest.raises(FormatError):
        InclusionProof.parse(data)


@given(st.integers(0, 2**62), st.lists(hashes, max_size=40), heads)
def test_a_proof_survives_its_text(index: int, nodes: list[bytes], head: Head) -> None:
    proof = InclusionProof(index, tuple(nodes), head)
    assert InclusionProof.parse(proof.text()) == proof


@given(st.lists(hashes, max_size=200))
def test_a_range_survives_its_text(leaves: list[bytes]) -> None:
    tree = Range()
    tree.extend(leaves)
    again = parse_range(print_range(tree))
    assert (again.size, again.nodes, again.root()) == (tree.size, tree.nodes, tree.root())


@given(st.binary(max_size=200))
def test_a_range_file_of_garbage_is_refused(data: bytes) -> None:
    try:
        tree = parse_range(data)
    except FormatError:
        return
    assert print_range(tree) == data


@given(st.integers(1, 300), st.data())
def test_proofs_hold_for_their_tree_and_no_other(size: int, data: st.DataObject) -> None:
    leaves = [leaf_hash(str(seq).encode()) for seq in range(size)]
    tree = Range()
    roots = []
    for leaf in leaves:
        tree.append(leaf)
        roots.append(tree.root())
    index = data.draw(st.integers(0, size - 1))
    other = data.draw(st.integers(0, size - 1).filter(lambda other: other != index)) if size > 1 else None
    included = span_roots(leaves, inclusion_spans(index, size))
    assert check_inclusion(included, index, leaves[index], size, roots[-1])
    extended = span_roots(leaves, consistency_spans(index + 1, size))
    assert check_consistency(extended, index + 1, roots[index], size, roots[-1])
    if other is not None:
        assert not check_inclusion(included, index, leaves[other], size, roots[-1])
        assert not check_inclusion(included, other, leaves[index], size, roots[-1])
        assert not check_consistency(extended, index + 1, roots[other], size, roots[-1])
    for nodes, holds in ((included, check_inclusion), (extended, check_consistency)):
        arguments = (index, leaves[index]) if holds is check_inclusion else (index + 1, roots[index])
        for wrong in ([*nodes, roots[-1]], nodes[:-1]):
            if wrong != nodes:
                assert not holds(wrong, *arguments, size, roots[-1])


@given(st.text())
def test_nothing_that_steers_a_terminal_survives(text: str) -> None:
    for shown in (escape(text), quote(text)):
        assert not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in shown)
        assert not any(char in shown for char in "\u202a\u202e\u2066\u2069\u200b\u200d\u2028\ufeff")


@given(st.text(), st.text())
def test_different_texts_look_different(one: str, other: str) -> None:
    assert (escape(one) == escape(other)) == (one == other)


@given(st.text())
def test_json_for_a_terminal_has_the_same_values(text: str) -> None:
    line = json.dumps({"name": text}, ensure_ascii=False)
    assert json.loads(escape_json(line)) == {"name": text}


paths = st.binary(max_size=40).map(os.fsdecode)


@given(paths, st.text(max_size=40), st.sampled_from(["allow", "deny", "reject", "undecided"]))
def test_whatever_a_program_is_called_it_is_logged_on_one_line(path: str, name: str, verdict: str) -> None:
    flow = ocsf.Flow(dst_ip="192.0.2.1", dst_port=443, name=name, process=ocsf.Process(1, path, path))
    line = entry.encode(ocsf.decision(flow, verdict, event="connect", stage="connect"))
    assert not any(byte < 0x20 for byte in line)
    assert json.loads(line)["ocsf"]["unmapped"]["verdict"] == verdict
    assert entry.decode(line).type == "decision"


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_a_line_of_garbage_is_no_entry(data: bytes) -> None:
    with pytest.raises(FormatError):
        entry.decode_header(data)
    with pytest.raises(FormatError):
        entry.decode(data)
