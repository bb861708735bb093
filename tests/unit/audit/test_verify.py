"""What the verifier must detect, and what it must not accuse."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from audit import keys
from audit.checkpoint import Head, SigningKey, VerifierKey
from audit.entry import note
from audit.errors import DiskError
from audit.layout import Layout
from audit.log import AuditLog
from audit.report import Report
from audit.tree import Range, leaf_hash
from audit.verify import verify

DAY = 86_400 * 1_000_000_000


def steps(report: Report) -> set[int]:
    return {finding.step for finding in report.findings}


def codes(report: Report) -> set[str]:
    return {finding.code for finding in report.findings}


def rewrite_lines(state_dir: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path = Layout(state_dir).segments()[0].lines
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def resign(state_dir: Path, key: SigningKey) -> None:
    """Make all heads anew over the lines as they are now, at the old sizes as far as the lines reach."""
    segment = Layout(state_dir).segments()[0]
    lines = segment.lines.read_bytes().splitlines()
    sizes = {int(size) for size in segment.heads.read_bytes().split(b"\n")[1::5]} | {len(lines)}
    tree, notes = Range(), []
    for number, line in enumerate(lines, 1):
        tree.append(leaf_hash(line))
        if number in sizes:
            notes.append(Head.sign(key, number, tree.root()).note())
    segment.heads.write_bytes(b"".join(notes))


def test_an_untouched_log_is_vouched_for_to_its_end(small_log) -> None:
    report = verify(small_log.state_dir)
    assert report.ok, report.findings
    assert (report.entries, report.heads, report.segments, report.tail) == (8, 4, 1, 0)
    assert report.vouched is not None
    assert report.vouched.size == 8
    last = json.loads(small_log.lines.splitlines()[-1])
    assert report.vouched.time_ns == last["time_ns"]
    assert last["type"] == "stop"


@pytest.mark.parametrize("suffix", [".jsonl", ".heads", "key.pub"])
def test_every_flipped_bit_is_found(small_log, suffix: str) -> None:
    state_dir = small_log.copy()
    path = next(path for path in state_dir.rglob("*") if path.name.endswith(suffix))
    good = path.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << (position % 8)
        path.write_bytes(bad)
        report = verify(state_dir)
        assert not report.ok, f"byte {position} of {path.name}"
        assert report.document()["count"] >= 1
        assert list(report.text())
    path.write_bytes(good)
    assert verify(state_dir).ok


def test_all_eight_bits_of_some_bytes_are_found(small_log) -> None:
    state_dir = small_log.copy()
    for path in (Layout(state_dir).segments()[0].lines, Layout(state_dir).segments()[0].heads):
        good = path.read_bytes()
        for position in range(0, len(good), 37):
            for bit in range(8):
                bad = bytearray(good)
                bad[position] ^= 1 << bit
                path.write_bytes(bad)
                assert not verify(state_dir).ok, f"bit {bit} of byte {position} of {path.name}"
        path.write_bytes(good)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("edit", lambda lines: [*lines[:3], lines[3].replace(b'"number":2', b'"number":7'), *lines[4:]]),
        ("swap", lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]]),
        ("drop", lambda lines: [*lines[:2], *lines[3:]]),
        ("duplicate", lambda lines: [*lines[:3], lines[2], *lines[3:]]),
        ("insertion", lambda lines: [*lines[:3], lines[2].replace(b'"number":1', b'"number":9'), *lines[3:]]),
        ("record cut", lambda lines: [*lines[:3], lines[3][:20] + b"\n", *lines[4:]]),
        ("blank added", lambda lines: [*lines[:3], b" " + lines[3], *lines[4:]]),
        ("last dropped", lambda lines: lines[:-1]),
        ("first dropped", lambda lines: lines[1:]),
        ("all dropped", lambda _: []),
        ("added at the end", lambda lines: [*lines, lines[-1].replace(b'"seq":7', b'"seq":8')]),
        ("torn end", lambda lines: [*lines, b'{"seq":8']),
        ("no last newline", lambda lines: [*lines[:-1], lines[-1][:-1]]),
        ("renumbered", lambda lines: [line.replace(b'"seq":', b'"seq":1') for line in lines]),
    ],
)
def test_changed_lines_are_found(small_log, name: str, change: Callable[[list[bytes]], list[bytes]]) -> None:
    state_dir = small_log.copy()
    before = Layout(state_dir).segments()[0].lines.read_bytes()
    rewrite_lines(state_dir, change)
    assert Layout(state_dir).segments()[0].lines.read_bytes() != before, "the test must change something"
    assert not verify(state_dir).ok


def test_an_edit_is_located_between_two_heads_and_the_rest_stays_vouched_for(small_log) -> None:
    state_dir = small_log.copy()
    rewrite_lines(state_dir, lambda lines: [*lines[:5], lines[5].replace(b'"number":4', b'"number":5'), *lines[6:]])
    report = verify(state_dir)
    assert codes(report) == {"root"}
    assert "entries 4 to 6" in report.findings[0].message
    assert report.vouched is not None
    assert report.vouched.size == 4


def test_all_findings_are_collected(small_log) -> None:
    state_dir = small_log.copy()
    segment = Layout(state_dir).segments()[0]
    lines = segment.lines.read_bytes().splitlines(keepends=True)
    segment.lines.write_bytes(b"".join([lines[0], b"garbage\n", *lines[3:], b"torn"]))
    segment.heads.write_bytes(b"x" + segment.heads.read_bytes() + b"sallyport/test\n9\n")
    report = verify(state_dir)
    assert steps(report) >= {3, 4, 6, 8, 9}
    assert codes(report) >= {"line", "sequence", "head-form", "head-torn", "root", "torn", "cut"}


def test_resigning_with_another_key_is_found(small_log) -> None:
    state_dir = small_log.copy()
    resign(state_dir, SigningKey.from_seed("sallyport/test", bytes(32)))
    report = verify(state_dir)
    assert codes(report) == {"signature"}
    assert report.count == 4
    assert report.vouched is None


def test_a_replaced_key_is_found_with_the_published_one_and_doubted_without(small_log) -> None:
    published = keys.load_public(Layout(small_log.state_dir).root / "key.pub")
    state_dir = small_log.copy()
    thief = SigningKey.from_seed("sallyport/test", bytes(32))
    rewrite_lines(state_dir, lambda lines: lines[:6])
    resign(state_dir, thief)
    (Layout(state_dir).root / "key.pub").write_text(f"{thief.verifier}\n")
    alone = verify(state_dir)
    assert alone.ok
    assert any("right key" in sentence for sentence in alone.unknown)
    report = verify(state_dir, key=published)
    assert not report.ok
    assert report.vouched is None
    assert not any("right key" in sentence for sentence in report.unknown)


def cut_at_head(state_dir: Path, note: bytes) -> None:
    """Take the log back to an older head: lines and heads end there together."""
    segment = Layout(state_dir).segments()[0]
    size = int(note.split(b"\n")[1])
    rewrite_lines(state_dir, lambda lines: lines[:size])
    heads = segment.heads.read_bytes()
    segment.heads.write_bytes(heads[: heads.index(note) + len(note)])


def test_a_tail_cut_at_a_head_needs_an_external_head(small_log) -> None:
    state_dir = small_log.copy()
    last, older = small_log.notes[-1], small_log.notes[1]
    cut_at_head(state_dir, older)
    alone = verify(state_dir)
    assert alone.ok, "a shorter log that was true once is flawless by itself"
    assert any("tail cut off at a head leaves no trace" in sentence for sentence in alone.unknown)
    report = verify(state_dir, external=[last])
    assert codes(report) == {"external-cut"}
    assert verify(state_dir, external=[older]).ok


def test_a_past_rewritten_with_the_stolen_key_needs_an_external_head(small_log) -> None:
    state_dir = small_log.copy()
    stolen = keys.load_private(Layout(state_dir).root)
    rewrite_lines(state_dir, lambda lines: [*lines[:5], lines[5].replace(b'"number":4', b'"number":0'), *lines[6:]])
    resign(state_dir, stolen)
    alone = verify(state_dir)
    assert alone.ok
    assert any("private key rewrote it" in sentence for sentence in alone.unknown)
    report = verify(state_dir, external=[small_log.notes[2], small_log.notes[1]])
    assert codes(report) == {"external-root"}
    assert report.external == [4, 7]
    assert report.vouched is not None
    assert report.vouched.size == 4, "what the older external head covers is untouched"


def test_an_external_head_of_somebody_else_is_a_finding(small_log) -> None:
    other = SigningKey.from_seed("sallyport/test", bytes(32))
    head = Head.parse(small_log.notes[0])
    forged = Head.sign(other, head.size, head.root).note()
    assert codes(verify(small_log.state_dir, external=[forged])) == {"external-signature"}
    assert codes(verify(small_log.state_dir, external=[b"nonsense"])) == {"external-form"}
    assert verify(small_log.state_dir, external=small_log.notes).ok


def test_heads_out_of_order_or_twice_are_found(small_log) -> None:
    state_dir = small_log.copy()
    path = Layout(state_dir).segments()[0].heads
    first, second, *rest = small_log.notes
    for heads in ([second, first, *rest], [first, first, second, *rest]):
        path.write_bytes(b"".join(heads))
        assert "head-order" in codes(verify(state_dir))


def test_a_dropped_head_is_no_evidence_but_the_next_one_still_covers_its_entries(small_log) -> None:
    state_dir = small_log.copy()
    path = Layout(state_dir).segments()[0].heads
    path.write_bytes(b"".join([small_log.notes[0], *small_log.notes[2:]]))
    assert verify(state_dir).ok
    path.write_bytes(b"".join(small_log.notes[:-1]))
    report = verify(state_dir)
    assert codes(report) == {"unsigned"}
    assert report.vouched is not None
    assert report.vouched.size == 7


def test_a_missing_segment_is_found(tmp_path: Path, open_log) -> None:
    log = open_log(segment_bytes=1)
    for number in range(3):
        log.append(note("command", number=number))
        assert log.commit()
    log.close()
    segments = Layout(tmp_path).segments()
    assert len(segments) == 5
    assert verify(tmp_path).ok
    segments[2].lines.unlink()
    assert {"segment-hole", "sequence"} <= codes(verify(tmp_path))


def test_no_log_is_an_error_and_an_empty_one_a_finding(small_log, tmp_path: Path) -> None:
    with pytest.raises(DiskError) as caught:
        verify(tmp_path / "nowhere")
    assert caught.value.exit_code == 8
    state_dir = small_log.copy()
    for path in Layout(state_dir).log.iterdir():
        path.unlink()
    assert codes(verify(state_dir)) == {"empty"}
    assert "external-cut" in codes(verify(state_dir, external=[small_log.notes[0]]))


def test_a_log_of_somebody_else_is_one_sentence(small_log) -> None:
    state_dir = small_log.copy()
    root = Layout(state_dir).root
    root.chmod(0)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(DiskError, match="Permission denied"):
            verify(state_dir)
    finally:
        os.seteuid(before)
        root.chmod(0o700)


@pytest.mark.parametrize("step", [-DAY, DAY, -5_000_000_000, 5_000_000_000])
def test_a_wall_clock_that_is_set_is_written_down_and_no_finding(tmp_path: Path, clock, open_log, step: int) -> None:
    log = open_log()
    log.append(note("command", number=1))
    clock.wall += step
    log.append(note("command", number=2))
    log.close()
    entries = [json.loads(line) for line in Layout(tmp_path).segments()[0].lines.read_bytes().splitlines()]
    assert [entry["type"] for entry in entries] == ["start", "command", "clock", "command", "stop"]
    detail = entries[2]["detail"]
    assert abs(detail["wall_ns"] - detail["mono_ns"] - step) < 1_000_000
    report = verify(tmp_path)
    assert report.ok
    assert any("clock was set" in remark for remark in report.notes)


def test_a_clock_step_between_two_runs_is_written_down_too(tmp_path: Path, clock, open_log) -> None:
    open_log().close()
    clock.wall -= DAY
    open_log().close()
    assert verify(tmp_path).ok
    clock.boot, clock.mono, clock.wall = "another", 3, clock.wall + 900 * DAY
    open_log().close()
    report = verify(tmp_path)
    assert report.ok, "another boot counts from anew"
    assert len([remark for remark in report.notes if "clock" in remark]) == 1


def test_half_a_second_of_drift_is_nothing(tmp_path: Path, clock, open_log) -> None:
    log = open_log()
    clock.wall += 500_000_000
    log.append(note("command"))
    log.close()
    assert b'"clock"' not in Layout(tmp_path).segments()[0].lines.read_bytes()
    assert verify(tmp_path).ok


@pytest.mark.parametrize(("member", "change"), [("time_ns", DAY), ("time_ns", -DAY), ("mono_ns", -DAY // 86400)])
def test_a_time_that_was_changed_and_signed_again_is_found(small_log, member: str, change: int) -> None:
    state_dir = small_log.copy()

    def shift(lines: list[bytes]) -> list[bytes]:
        entry = json.loads(lines[4])
        entry[member] += change
        return [*lines[:4], json.dumps(entry).encode() + b"\n", *lines[5:]]

    rewrite_lines(state_dir, shift)
    resign(state_dir, keys.load_private(Layout(state_dir).root))
    assert "time" in codes(verify(state_dir))


def test_a_log_that_is_being_written_is_not_accused(tmp_path: Path, open_log) -> None:
    log = open_log()
    segment = Layout(tmp_path).segments()[0]
    head, *_ = [segment.heads.read_bytes()]
    with segment.lines.open("ab") as lines, segment.heads.open("ab") as heads:
        lines.write(b'{"seq":1,"time_ns":1800000000002000000,"mono_ns":5000002000000,"boot":"b","type":"x"}\n{"se')
        heads.write(head[:40])
    report = verify(tmp_path)
    assert report.ok, report.findings
    assert (report.writing, report.tail) == (True, 1)
    log._store.close()
    assert codes(verify(tmp_path)) == {"unsigned", "torn", "head-torn"}


def test_losses_and_recoveries_are_named(tmp_path: Path, open_log, trouble) -> None:
    log = open_log(queue_entries=2)
    for number in range(5):
        log.append(note("command", number=number))
    log.close()
    segment = Layout(tmp_path).segments()[0]
    with segment.lines.open("ab") as lines:
        lines.write(b"half a li")
    open_log().close()
    report = verify(tmp_path)
    assert report.ok, report.findings
    assert report.lost == 3
    assert any("cut_bytes 9" in remark for remark in report.notes)


def test_a_file_of_garbage_gives_a_bounded_report(small_log) -> None:
    state_dir = small_log.copy()
    Layout(state_dir).segments()[0].lines.write_bytes(b"\n" * 5000 + b"x" * (3 << 20) + b"\n")
    report = verify(state_dir)
    assert report.count > 5000
    assert len(report.findings) == 1000


def test_numbers_beyond_any_clock_are_findings_not_crashes(small_log) -> None:
    state_dir = small_log.copy()
    huge = b"9" * 400
    rewrite_lines(
        state_dir,
        lambda lines: [
            b'{"seq":' + huge + b',"time_ns":' + huge + b',"mono_ns":0,"boot":"","type":"x"}\n',
            b'{"seq":1,"time_ns":9223372036854775807,"mono_ns":0,"boot":"","type":"x"}\n',
            b'{"seq":2,"time_ns":0,"mono_ns":9223372036854775807,"boot":"","type":"gap","detail":[]}\n',
            b'{"seq":3,"time_ns":0,"mono_ns":0,"boot":"","type":"gap","detail":{"count":"many"}}\n',
            b"[" * 100_000 + b"\n",
        ],
    )
    report = verify(state_dir)
    assert {"line", "time", "cut"} <= codes(report)
    assert all("\n" not in line for line in report.text())


def test_the_key_given_need_not_be_in_the_folder(small_log) -> None:
    state_dir = small_log.copy()
    public = Layout(state_dir).root / "key.pub"
    key = VerifierKey.parse(public.read_text().strip())
    public.unlink()
    assert codes(verify(state_dir)) == {"key", "signature"}
    assert verify(state_dir, key=key).ok


def test_a_writer_with_a_thread_can_be_verified_at_any_moment(tmp_path: Path) -> None:
    with_thread = AuditLog.open(tmp_path)
    for number in range(3000):
        with_thread.append(note("command", number=number))
        if number % 300 == 0:
            report = verify(tmp_path)
            assert report.ok, report.findings
    with_thread.close()
    report = verify(tmp_path)
    assert report.ok
    assert report.entries == 3002
