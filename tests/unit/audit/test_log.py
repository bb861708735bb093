"""Append, acknowledge, lose openly."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from audit.checkpoint import Head
from audit.entry import Generation, note
from audit.errors import DiskError
from audit.layout import Layout
from audit.log import AuditLog, Limits
from audit.ocsf import Flow, decision
from audit.verify import verify

ROOT = Path(__file__).parents[3]


def entries(state_dir: Path) -> list[dict]:
    return [
        json.loads(line) for segment in Layout(state_dir).segments() for line in segment.lines.read_bytes().splitlines()
    ]


def test_a_log_begins_with_start_and_ends_with_stop(tmp_path: Path) -> None:
    log = AuditLog.open(tmp_path, origin="sallyport/here", thread=False, version="1.2")
    assert log.state.durable == 1, "the start entry is signed before open returns"
    key = log.verifier_key
    log.close(reason="asked to")
    AuditLog.open(tmp_path, origin="another name", thread=False).close()
    first, stop, second, _ = entries(tmp_path)
    assert (first["seq"], first["type"]) == (0, "start")
    assert first["detail"] == {
        "version": "1.2",
        "format": 1,
        "origin": "sallyport/here",
        "key": key,
        "previous_stop": True,
    }
    assert stop["detail"] == {"lost": 0, "reason": "asked to"}
    assert second["detail"]["origin"] == "sallyport/here", "a log keeps its name"
    assert second["detail"]["previous_stop"] is True


def test_a_killed_writer_shows_in_the_next_start(tmp_path: Path, open_log) -> None:
    open_log()._store.close()
    open_log().close()
    assert [entry["detail"].get("previous_stop") for entry in entries(tmp_path)] == [True, False, None]


def test_sequence_numbers_are_dense_and_times_are_given_by_the_log(tmp_path: Path, open_log, clock) -> None:
    log = open_log()
    assert [log.append(note("command", number=number)) for number in range(3)] == [1, 2, 3]
    log.append(decision(Flow(dst_ip="192.0.2.1"), "allow", event="connect", stage="connect"))
    log.append(decision(Flow(dst_ip="192.0.2.1"), "allow", event="connect", stage="connect", time_ns=1_000_000))
    log.close()
    found = entries(tmp_path)
    assert [entry["seq"] for entry in found] == list(range(7))
    assert all(entry["boot"] == clock.boot for entry in found)
    times = [entry["mono_ns"] for entry in found]
    assert times == sorted(times)
    assert found[4]["ocsf"]["time"] == found[4]["time_ns"] // 1_000_000
    assert found[5]["ocsf"]["time"] == 1


def test_entries_carry_the_generation_in_force_unless_they_bring_their_own(tmp_path: Path, open_log) -> None:
    log = open_log()
    log.generation = Generation(4, "ab" * 32, "c0ffee", dirty=True)
    log.append(note("command"))
    log.append(note("command", generation=Generation(3, "cd" * 32)))
    log.close()
    found = [entry.get("generation") for entry in entries(tmp_path)]
    assert found[0] is None
    assert found[1] == {"number": 4, "digest": "ab" * 32, "commit": "c0ffee", "dirty": True}
    assert found[2] == {"number": 3, "digest": "cd" * 32, "commit": "", "dirty": False}


def test_a_thread_makes_entries_durable_and_tells(tmp_path: Path) -> None:
    log = AuditLog.open(tmp_path)
    heads: list[Head] = []
    log.on_durable(heads.append)
    seq = log.append(note("command"))
    assert seq == 1
    assert log.wait(seq, timeout=20)
    assert log.state.durable >= 2
    log.close()
    assert [head.size for head in heads] == [2, 3]
    assert heads[-1] == Head.parse(Layout(tmp_path).segments()[0].heads.read_bytes()[-len(heads[-1].note()) :])


def test_a_subscriber_that_fails_does_not_stop_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = AuditLog.open(tmp_path)

    def fail(head: Head) -> None:
        raise ValueError(head.size)

    log.on_durable(fail)
    assert log.wait(log.append(note("command")), timeout=20)
    assert log.wait(log.append(note("command")), timeout=20)
    log.close()
    assert "subscriber" in caplog.text


def test_many_threads_append_without_a_hole(tmp_path: Path) -> None:
    log = AuditLog.open(tmp_path)

    def work(name: int) -> None:
        for number in range(500):
            assert log.append(note("command", name=name, number=number)) is not None

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    found = [entry["detail"] for entry in entries(tmp_path) if entry["type"] == "command"]
    for name in range(4):
        assert [detail["number"] for detail in found if detail["name"] == name] == list(range(500))
    assert verify(tmp_path).ok


def test_a_coroutine_can_wait_for_its_entry(tmp_path: Path) -> None:
    log = AuditLog.open(tmp_path)

    async def main() -> int:
        seq = log.append(note("command"))
        assert seq is not None
        await asyncio.wait_for(log.until(seq), 20)
        await asyncio.wait_for(log.until(seq), 20)
        return log.state.durable

    assert asyncio.run(main()) >= 2
    log.close()


def test_a_coroutine_is_told_when_its_entry_will_never_be_durable(open_log, trouble) -> None:
    log = open_log()

    async def main() -> None:
        seq = log.append(note("command"))
        assert seq is not None
        waiting = asyncio.ensure_future(log.until(seq))
        await asyncio.sleep(0)
        trouble.space = 0
        with pytest.raises(DiskError, match="2 entries of the audit log could not be written"):
            log.close()
        with pytest.raises(DiskError, match="closed before"):
            await asyncio.wait_for(waiting, 20)
        with pytest.raises(DiskError, match="closed before"):
            await log.until(seq)

    asyncio.run(main())
    assert log.state.status == "closed"
    assert not log.wait(1, timeout=0)


def test_an_idle_log_says_that_it_lives(tmp_path: Path) -> None:
    log = AuditLog.open(tmp_path, limits=Limits(heartbeat_seconds=0.01))
    assert log.wait(3, timeout=20), "three heartbeats come by themselves"
    log.close()
    assert [entry["type"] for entry in entries(tmp_path)][1:4] == ["heartbeat"] * 3


def test_a_full_queue_is_counted_and_a_gap_stands_where_the_entries_would(tmp_path: Path, open_log) -> None:
    log = open_log(queue_entries=3)
    found = [log.append(note("command", number=number)) for number in range(7)]
    assert found == [1, 2, 3, None, None, None, None]
    assert (log.state.lost, log.state.unreported, log.state.queued) == (4, 4, 3)
    log.commit()
    assert log.state.unreported == 0
    log.append(note("command", number=7))
    log.close()
    kinds = [(entry["type"], entry["detail"].get("number")) for entry in entries(tmp_path)]
    assert kinds == [
        ("start", None),
        *[("command", number) for number in range(3)],
        ("gap", None),
        ("command", 7),
        ("stop", None),
    ]
    assert entries(tmp_path)[4]["detail"] == {"count": 4, "reason": "the queue is full"}
    assert entries(tmp_path)[-1]["detail"] == {"lost": 4}
    assert verify(tmp_path).ok


def test_the_queue_is_bounded_in_bytes_too(open_log) -> None:
    log = open_log(queue_bytes=3000)
    while log.append(note("command", text="x" * 500)) is not None:
        assert log.state.queued < 7
    assert log.state.lost == 1
    for _ in range(8):
        assert log.commit()
        assert log.append(note("command", text="x" * 500)) is not None, "what was written makes room"
    log.close()


def test_an_entry_longer_than_a_line_may_be_leaves_a_gap(tmp_path: Path, open_log) -> None:
    log = open_log()
    assert log.append(note("command", text="x" * (1 << 20))) is None
    assert log.append(note("command", number=1)) == 2
    log.close()
    found = entries(tmp_path)
    assert found[1]["detail"] == {"count": 1, "reason": "an entry was longer than a line may be"}
    assert found[2]["detail"] == {"number": 1}
    assert verify(tmp_path).ok


def test_after_close_an_entry_is_lost_not_written(tmp_path: Path, open_log) -> None:
    log = open_log()
    log.close()
    log.close()
    assert log.append(note("command")) is None
    assert log.state.lost == 1
    assert len(entries(tmp_path)) == 2


@pytest.mark.parametrize("space", [0, 1, 50, 400, 700])
def test_a_full_disk_keeps_counts_and_recovers(tmp_path: Path, open_log, trouble, space: int) -> None:
    log = open_log(queue_entries=4)
    trouble.space = space
    for number in range(4):
        log.append(note("command", number=number))
    assert not log.commit()
    state = log.state
    assert (state.status, state.durable, state.queued) == ("failing", 1, 4)
    assert "No space left on device" in state.error
    assert [log.append(note("command", number=number)) for number in range(4, 9)] == [None] * 5
    assert not log.commit(), "a full disk stays full"
    trouble.space = None
    assert log.commit()
    assert (log.state.status, log.state.error, log.state.lost, log.state.unreported) == ("open", "", 5, 0)
    log.append(note("command", number=9))
    log.close()
    found = entries(tmp_path)
    assert [entry["detail"].get("number") for entry in found] == [None, 0, 1, 2, 3, None, 9, None]
    gap = found[5]
    assert (gap["type"], gap["detail"]["count"]) == ("gap", 5)
    assert "No space left on device" in gap["detail"]["reason"]
    report = verify(tmp_path)
    assert report.ok, report.findings
    assert report.lost == 5


@pytest.mark.parametrize("operation", ["write", "sync"])
@pytest.mark.parametrize("suffix", [".jsonl", ".heads"])
def test_after_an_io_error_everything_is_written_again(
    tmp_path: Path, open_log, trouble, operation: str, suffix: str
) -> None:
    log = open_log()
    trouble.refuse.add((operation, suffix))
    log.append(note("command", number=1))
    assert not log.commit()
    assert log.state.durable == 1
    trouble.refuse.add(("truncate", suffix))
    assert not log.commit(), "not even cutting back works"
    trouble.refuse.clear()
    trouble.done.clear()
    log.append(note("command", number=2))
    assert log.commit()
    assert [(done, ending) for done, ending, _ in trouble.done][:4] == [
        ("truncate", ".heads"),
        ("sync", ".heads"),
        ("truncate", ".jsonl"),
        ("sync", ".jsonl"),
    ], "heads first: a crash in between must not leave a head without its lines"
    log.close()
    assert [entry["detail"].get("number") for entry in entries(tmp_path)] == [None, 1, 2, None]
    report = verify(tmp_path)
    assert report.ok, report.findings


def test_a_disk_that_is_full_at_start_does_not_keep_the_engine_from_starting(tmp_path: Path, open_log, trouble) -> None:
    trouble.space = 10
    log = open_log()
    assert log.state.status == "failing"
    assert log.append(note("command")) == 1
    trouble.space = None
    assert log.commit()
    log.close()
    assert verify(tmp_path).ok


def test_the_thread_goes_on_trying(tmp_path: Path, trouble, clock) -> None:
    from audit.disk import PosixDisk

    failed = threading.Event()

    class Flaky(PosixDisk):
        def append_to(self, path):
            inner = super().append_to(path)
            write = inner.write

            def flaky(data: bytes) -> None:
                if b'"number":1' in data and not failed.is_set():
                    failed.set()
                    raise OSError(28, "No space left on device")
                write(data)

            inner.write = flaky  # type: ignore[method-assign]
            return inner

    log = AuditLog.open(tmp_path, disk=Flaky())
    seq = log.append(note("command", number=1))
    assert log.wait(seq, timeout=30)
    assert failed.is_set()
    assert log.state.status == "open"
    log.close()
    assert verify(tmp_path).ok


REAL_LIMIT = """
import resource, sys
from pathlib import Path
from audit.entry import note
from audit.log import AuditLog, Limits
log = AuditLog.open(Path(sys.argv[1]), thread=False, limits=Limits(queue_entries=100))
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))
lost = 0
for number in range(500):
    lost += log.append(note("command", number=number)) is None
    if number % 10 == 9:
        log.commit()
print(log.state.status, log.state.lost == lost, lost > 100, "File too large" in log.state.error)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
print(log.commit(), log.state.unreported)
log.close()
print(lost)
"""


def test_a_real_write_that_the_kernel_refuses(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", REAL_LIMIT, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    failing, recovered, lost = run.stdout.splitlines()
    assert failing == "failing True True True"
    assert recovered == "True 0"
    report = verify(tmp_path)
    assert report.ok, report.findings
    assert report.lost == int(lost)


def test_what_json_cannot_hold_is_the_callers_error_and_costs_no_number(open_log) -> None:
    log = open_log()
    with pytest.raises(TypeError):
        log.append(note("command", what=object()))
    assert log.append(note("command")) == 1
    log.close()
