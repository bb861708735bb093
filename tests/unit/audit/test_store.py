"""The log on disk: what survives a crash, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from hashlib import sha256
from pathlib import Path

import pytest

from audit import keys
from audit.checkpoint import Head, SigningKey
from audit.disk import Disk
from audit.entry import note
from audit.errors import BrokenLogError, DiskError, KeyFileError, LockedError
from audit.layout import Layout
from audit.log import AuditLog, Limits
from audit.store import Store, writer_active
from audit.verify import verify


def entries(state_dir: Path) -> list[dict]:
    return [
        json.loads(line) for segment in Layout(state_dir).segments() for line in segment.lines.read_bytes().splitlines()
    ]


def reopen(state_dir: Path, clock, disk: Disk | None = None) -> list[dict]:
    """Start and stop a writer; the log must verify afterwards. Return its entries."""
    AuditLog.open(state_dir, clock=clock, disk=disk, thread=False).close()
    report = verify(state_dir)
    assert report.ok, report.findings
    return entries(state_dir)


def test_one_writer_at_a_time(tmp_path: Path, open_log) -> None:
    log = open_log()
    assert writer_active(Layout(tmp_path))
    with pytest.raises(LockedError) as caught:
        Store(tmp_path)
    assert "Another process writes" in caught.value.diagnostics()
    assert caught.value.exit_code == 8
    log.close()
    assert not writer_active(Layout(tmp_path))
    open_log().close()


def test_lines_go_before_their_head_and_both_are_synced_before_the_acknowledgement(open_log, trouble) -> None:
    log = open_log()
    trouble.done.clear()
    log.append(note("command", number=1))
    assert trouble.done == [], "append does not touch the disk"
    assert log.state.durable == 1
    log.commit()
    assert [(operation, suffix) for operation, suffix, _ in trouble.done] == [
        ("write", ".jsonl"),
        ("sync", ".jsonl"),
        ("write", ".heads"),
        ("sync", ".heads"),
    ]
    assert log.state.durable == 2
    log.close()


def test_a_long_batch_has_a_head_after_each_1024_entries_under_one_sync(tmp_path: Path, open_log, trouble) -> None:
    log = open_log()
    for number in range(2500):
        log.append(note("command", number=number))
    trouble.done.clear()
    log.commit()
    assert [(operation, suffix) for operation, suffix, _ in trouble.done].count(("sync", ".jsonl")) == 1
    sizes = Layout(tmp_path).segments()[0].heads.read_text().split("\n")[1::5]
    assert sizes == ["1", "1025", "2049", "2501"]
    log.close()


def test_segments_begin_at_a_signed_size_and_the_log_goes_on_over_them(tmp_path: Path, clock, open_log) -> None:
    for _ in range(3):
        log = open_log(segment_bytes=600)
        for number in range(8):
            log.append(note("command", number=number))
            log.commit()
        log.close()
    segments = Layout(tmp_path).segments()
    assert len(segments) > 4
    sizes = {int(size) for segment in segments for size in segment.heads.read_text().split("\n")[1::5]}
    assert {segment.first for segment in segments[1:]} <= sizes
    report = verify(tmp_path)
    assert report.ok, report.findings
    assert report.entries == len(entries(tmp_path)) == 30


@pytest.mark.parametrize("damage", ["missing", "wrong", "garbage"])
def test_a_damaged_range_file_is_computed_again(tmp_path: Path, clock, open_log, damage: str) -> None:
    log = open_log(segment_bytes=1)
    for number in range(4):
        log.append(note("command", number=number))
        log.commit()
    log.close()
    last, before = Layout(tmp_path).segments()[-1], Layout(tmp_path).segments()[-2]
    if damage == "missing":
        last.range.unlink()
    else:
        last.range.write_bytes(before.range.read_bytes() if damage == "wrong" else b"5\n\xff")
    assert len(reopen(tmp_path, clock)) == 8


def test_a_crash_at_any_byte_of_what_was_written_loses_nothing_acknowledged(
    tmp_path: Path, clock, open_log, trouble, quick_disk
) -> None:
    log = open_log()
    promised = [(0, 0), (sum(len(data) for _, _, data in trouble.done), log.state.durable)]
    for batch in range(2):
        for number in range(2):
            log.append(note("command", number=10 * batch + number))
        log.commit()
        promised.append((sum(len(data) for _, _, data in trouble.done), log.state.durable))
    writes = [(suffix, data) for operation, suffix, data in trouble.done if operation == "write"]
    log._store.close()
    whole = entries(tmp_path)
    first = Layout(tmp_path).segments()[0]
    total = promised[-1][0]
    assert total > 1000
    for cut in range(total + 1):
        found = {".jsonl": b"", ".heads": b""}
        rest = cut
        for suffix, data in writes:
            found[suffix] += data[:rest]
            rest -= min(rest, len(data))
        first.lines.write_bytes(found[".jsonl"])
        first.heads.write_bytes(found[".heads"])
        kept = max(entry_count for written, entry_count in promised if written <= cut)
        after = reopen(tmp_path, clock, quick_disk)
        assert len(after) >= kept
        assert after[:kept] == whole[:kept], f"cut after {cut} bytes"
        complete = found[".jsonl"].count(b"\n")
        assert after[:complete] == whole[:complete], "whole lines without a head are kept as well"
        torn = len(found[".jsonl"].rpartition(b"\n")[2])
        detail = after[complete]["detail"] if after[complete]["type"] == "recovery" else {}
        assert detail.get("cut_bytes", 0) == torn


def test_adopted_lines_are_signed_before_a_new_segment_begins(small_log, clock) -> None:
    state_dir = small_log.copy()
    heads = Layout(state_dir).segments()[0].heads
    heads.write_bytes(b"".join(small_log.notes[:-1]))
    AuditLog.open(state_dir, clock=clock, thread=False, limits=Limits(segment_bytes=1)).close()
    assert [segment.first for segment in Layout(state_dir).segments()] == [0, 10]
    assert [entry["type"] for entry in reopen(state_dir, clock)[8:11]] == ["recovery", "start", "stop"]


@pytest.mark.parametrize("offset", range(0, 180, 11))
def test_heads_cut_at_any_place_are_replaced(small_log, clock, offset: int) -> None:
    state_dir = small_log.copy()
    heads = Layout(state_dir).segments()[0].heads
    heads.write_bytes(small_log.heads[: len(small_log.heads) - offset])
    before = entries(state_dir)
    after = reopen(state_dir, clock)
    assert after[: len(before)] == before
    kinds = [entry["type"] for entry in after[len(before) :]]
    assert kinds == (["recovery", "start", "stop"] if offset else ["start", "stop"])


def test_acknowledged_lines_that_are_gone_stop_the_writer_and_nothing_is_changed(small_log) -> None:
    for cut in range(1, len(small_log.lines), 7):
        state_dir = small_log.copy()
        segment = Layout(state_dir).segments()[0]
        segment.lines.write_bytes(small_log.lines[:-cut])
        with pytest.raises(BrokenLogError) as caught:
            Store(state_dir)
        assert "sallyport audit verify" in caught.value.hint
        assert segment.lines.read_bytes() == small_log.lines[:-cut]
        assert segment.heads.read_bytes() == small_log.heads
        assert not verify(state_dir).ok


@pytest.mark.parametrize("part", ["lines", "heads"])
def test_no_new_signature_hides_damage(small_log, quick_disk, part: str) -> None:
    state_dir = small_log.copy()
    path: Path = getattr(Layout(state_dir).segments()[0], part)
    good = path.read_bytes()
    refused = 0
    for position in range(0, len(good) - 1, 5):
        state_dir = small_log.copy()
        bad = bytearray(good)
        bad[position] ^= 4
        path.write_bytes(bad)
        try:
            AuditLog.open(state_dir, disk=quick_disk, thread=False).close()
        except BrokenLogError:
            refused += 1
            assert path.read_bytes() == bad
        # The writer checks the lines and the last head only: an older head that is damaged stays so, to be found.
        assert not verify(state_dir).ok
    assert refused > 0
    assert part == "heads" or refused == len(range(0, len(good) - 1, 5))


def test_damage_in_an_older_segment_stops_the_writer_when_it_has_to_be_read(tmp_path: Path, open_log) -> None:
    log = open_log(segment_bytes=1)
    log.append(note("command", number=1))
    log.commit()
    log.close()
    segments = Layout(tmp_path).segments()
    segments[0].lines.write_bytes(segments[0].lines.read_bytes().replace(b"start", b"stars"))
    segments[-1].range.unlink()
    with pytest.raises(BrokenLogError, match="does not have the root"):
        Store(tmp_path)
    for missing in (segments[-2].heads, segments[-2].lines):
        missing.unlink()
        with pytest.raises(BrokenLogError):
            Store(tmp_path)


def test_what_follows_a_bad_line_without_a_head_is_cut_and_its_hash_recorded(small_log, clock) -> None:
    state_dir = small_log.copy()
    segment = Layout(state_dir).segments()[0]
    good = segment.lines.read_bytes().splitlines()[-1].replace(b'"seq":7', b'"seq":8')
    junk = bytes(64) + b"\nmore\n"  # a power cut can leave blocks of zeros
    segment.lines.write_bytes(small_log.lines + good + b"\n" + junk)
    after = reopen(state_dir, clock)
    assert [entry["type"] for entry in after[7:]] == ["stop", "stop", "recovery", "start", "stop"]
    assert after[9]["detail"] == {
        "adopted_from": 8,
        "adopted": 1,
        "cut_bytes": len(junk),
        "cut_sha256": sha256(junk).hexdigest(),
    }


def test_lines_added_out_of_order_are_not_adopted(small_log, clock) -> None:
    state_dir = small_log.copy()
    segment = Layout(state_dir).segments()[0]
    last = small_log.lines.splitlines(keepends=True)[-1]
    segment.lines.write_bytes(small_log.lines + last.replace(b'"seq":7', b'"seq":9'))
    after = reopen(state_dir, clock)
    assert [entry["type"] for entry in after[8:]] == ["recovery", "start", "stop"]
    assert after[8]["detail"]["cut_bytes"] == len(last)


def test_a_log_whose_last_head_is_signed_by_somebody_else_is_not_continued(small_log) -> None:
    state_dir = small_log.copy()
    head = Head.parse(small_log.notes[-1])
    forged = Head.sign(SigningKey.from_seed(head.origin, bytes(32)), head.size, head.root)
    Layout(state_dir).segments()[0].heads.write_bytes(b"".join(small_log.notes[:-1]) + forged.note())
    with pytest.raises(BrokenLogError, match="not signed by this log's key"):
        Store(state_dir)


def test_an_old_log_without_its_key_is_not_continued(small_log) -> None:
    state_dir = small_log.copy()
    (Layout(state_dir).root / "key").unlink()
    with pytest.raises(KeyFileError, match="private key is gone"):
        Store(state_dir)
    assert not (Layout(state_dir).root / "key").exists()


def test_a_public_key_that_was_replaced_is_noticed(small_log) -> None:
    state_dir = small_log.copy()
    other = keys.create(small_log.scratch.parent, "sallyport/test")
    (Layout(state_dir).root / "key.pub").write_text(f"{other.verifier}\n")
    with pytest.raises(KeyFileError, match="not the public half"):
        Store(state_dir)


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("a file where the folder should be")
    with pytest.raises(DiskError) as caught:
        Store(tmp_path)
    assert "cannot be used" in caught.value.message
    assert caught.value.exit_code == 8


def test_nobody_else_can_read_the_log(tmp_path: Path, open_log) -> None:
    previous = os.umask(0)
    try:
        open_log(segment_bytes=1).close()
    finally:
        os.umask(previous)
    modes = {path.name: path.stat().st_mode & 0o777 for path in [Layout(tmp_path).root, *tmp_path.rglob("*")]}
    assert modes.pop("key.pub") == 0o644
    assert {mode & 0o077 for mode in modes.values()} == {0}
    assert modes["key"] == 0o600


def test_a_copy_of_the_folder_is_the_same_log(small_log, clock, tmp_path: Path) -> None:
    shutil.copytree(small_log.state_dir, tmp_path / "copy")
    assert len(reopen(tmp_path / "copy", clock)) == 10


def test_failed_open_gives_the_directory_free(small_log) -> None:
    state_dir = small_log.copy()
    segment = Layout(state_dir).segments()[0]
    segment.heads.write_bytes(b"\n" * 5)
    with pytest.raises(BrokenLogError):
        Store(state_dir)
    segment.heads.write_bytes(small_log.heads)
    Store(state_dir).close()


@pytest.mark.parametrize("rotation", ["open", "sync"])
def test_a_rotation_that_fails_half_way_is_tried_again(
    tmp_path: Path, clock, open_log, trouble, monkeypatch: pytest.MonkeyPatch, rotation: str
) -> None:
    log = open_log(segment_bytes=1)
    log.append(note("command", number=1))
    if rotation == "open":
        trouble.refuse.add(("open", ".jsonl"))
    else:
        monkeypatch.setattr("audit.disk.PosixDisk.sync_folder", _refuse)
    assert not log.commit()
    assert "Input/output error" in log.state.error
    monkeypatch.undo()
    trouble.refuse.clear()
    assert log.commit()
    log.close()
    report = verify(tmp_path)
    assert report.ok, report.findings
    assert report.segments == 3


def _refuse(self: object, path: Path) -> None:
    raise OSError(5, "Input/output error")
