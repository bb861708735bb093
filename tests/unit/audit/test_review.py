"""Reading a log: filters, both forms of output, following."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from audit.entry import Entry, decode, encode, note
from audit.errors import FormatError
from audit.layout import Layout
from audit.ocsf import Flow, Process, decision, process_event, socket_close
from audit.review import Filter, follow, line_for_people, line_for_programs, read

CURL = Process(7, "curl", "/usr/bin/curl", 1000)
SECOND = 1_000_000_000


@pytest.fixture
def layout(tmp_path: Path, open_log, clock) -> Layout:
    """Entries 1 to 6 between a start and a stop, one second apart, in several segments."""
    log = open_log(segment_bytes=1500)

    def add(entry) -> None:
        clock.wall += SECOND
        clock.mono += SECOND
        log.append(entry)
        log.commit()

    good = Flow("10.0.0.1", 5, "192.0.2.1", 443, process=CURL, name="www.example.com")
    add(decision(good, "allow", event="payload", stage="payload"))
    evil = Flow("10.0.0.1", 6, "192.0.2.2", 443, process=Process(8, exe="/bin/nc"), name="EVIL.example.com")
    reasons = [("default", "x"), ("names", "listed")]
    add(decision(evil, "deny", event="payload", stage="payload", reasons=reasons))
    six = Flow("2001:db8::1", 7, "2001:db8:1::2", 80)
    add(decision(six, "allow", event="connect", stage="connect", would="deny"))
    add(socket_close(Flow("10.0.0.1", 5, "192.0.2.1", 443, process=CURL), bytes_in=1, bytes_out=2, duration_ns=3))
    add(process_event(CURL, "exec"))
    add(note("alert", text="something happened", other=5))
    log.close()
    assert len(Layout(tmp_path).segments()) > 2
    return Layout(tmp_path)


def chosen(layout: Layout, limit: int | None = None, **filters) -> list[int]:
    return [entry.seq for _, entry in read(layout, Filter(**filters), limit=limit)]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"type": "decision"}, [1, 2, 3]),
        ({"verdict": "allow"}, [1, 3]),
        ({"verdict": "deny"}, [2, 3]),
        ({"name": "*.example.com"}, [1, 2]),
        ({"name": "evil.EXAMPLE.com"}, [2]),
        ({"name": "example.com"}, []),
        ({"exe": "/usr/bin/*"}, [1, 4, 5]),
        ({"rule": "names"}, [2]),
        ({"rule": "na*", "exe": "/usr/bin/curl"}, []),
        ({"address": ipaddress.ip_network("192.0.2.0/31")}, [1, 4]),
        ({"address": ipaddress.ip_network("10.0.0.1")}, [1, 2, 4]),
        ({"address": ipaddress.ip_network("2001:db8:1::/48")}, [3]),
        ({"first": 3, "last": 4}, [3, 4]),
        ({"first": 7}, [7]),
        ({"first": 99}, []),
        ({"limit": 2}, [6, 7]),
        ({"limit": 2, "type": "decision"}, [2, 3]),
    ],
)
def test_filters(layout: Layout, filters, expected: list[int]) -> None:
    assert chosen(layout, **filters) == expected


def test_times_are_half_open(layout: Layout) -> None:
    times = [entry.time_ns for _, entry in read(layout, Filter())]
    assert chosen(layout, since=times[2], until=times[4]) == [2, 3]


def until_interrupted(entries: Iterator[tuple[bytes, Entry]]) -> list[Entry]:
    found = []
    try:
        for _, entry in entries:
            found.append(entry)
    except KeyboardInterrupt:
        return found
    raise AssertionError("following ended by itself")


def test_following_gives_what_is_there_then_what_is_appended(tmp_path: Path, open_log) -> None:
    log = open_log(segment_bytes=300)
    batches = [["a", "b"], [], ["c"], ["d", "e", "f"]]
    for number in range(5):
        log.append(note("command", text=f"old {number}"))
        log.commit()

    def write_more(seconds: float) -> None:
        if not batches:
            raise KeyboardInterrupt
        for text in batches.pop(0):
            log.append(note("command", text=text))
            log.commit()

    found = until_interrupted(follow(Layout(tmp_path), Filter(type="command"), limit=2, pause=write_more))
    seen = [entry.detail["text"] for entry in found if entry.detail]
    assert seen == ["old 3", "old 4", "a", "b", "c", "d", "e", "f"]
    log.close()


def test_following_waits_for_the_rest_of_a_line(tmp_path: Path, open_log) -> None:
    open_log().close()
    path = Layout(tmp_path).segments()[0].lines
    line = encode(note("command", text="x")).replace(b'"seq":-1', b'"seq":2') + b"\n"
    parts = [line[:20], line[20:-1], line[-1:]]

    def write_more(seconds: float) -> None:
        if not parts:
            raise KeyboardInterrupt
        with path.open("ab") as file:
            file.write(parts.pop(0))

    found = until_interrupted(follow(Layout(tmp_path), Filter(), pause=write_more))
    assert [entry.type for entry in found] == ["start", "stop", "command"]


def test_lines_for_people(layout: Layout) -> None:
    shown = [line_for_people(entry) for _, entry in read(layout, Filter())]
    assert shown[2] == (
        "2027-01-15T08:00:02.003000Z  2  decision  payload  deny  tcp 10.0.0.1:6 -> 192.0.2.2:443  "
        "evil.example.com  /bin/nc pid 8  uid unknown  default: x  names: listed"
    )
    assert "allow  (would deny)  tcp [2001:db8::1]:7 -> [2001:db8:1::2]:80" in shown[3]
    assert shown[4].endswith("/usr/bin/curl pid 7  uid 1000  in 1 out 2 bytes")
    assert shown[5].endswith("socket  exec  /usr/bin/curl pid 7  uid 1000")
    assert shown[6].endswith('alert  text="something happened"  other=5')


HOSTILE = "a\x1b[2J\x9b31m\u202egnp.exe\u200b\\n\n  9  decision"


def test_nothing_that_others_chose_reaches_the_terminal_raw() -> None:
    process = Process(1, HOSTILE, HOSTILE, 0, cgroup=HOSTILE)
    flow = Flow(HOSTILE, 1, HOSTILE, 2, transport=HOSTILE, process=process, name=HOSTILE, name_state=HOSTILE)
    entries = [
        decision(flow, "allow", event=HOSTILE, stage=HOSTILE, reasons=[(HOSTILE, HOSTILE)], would=HOSTILE),
        note("alert", **{HOSTILE: HOSTILE, "list": [HOSTILE, {HOSTILE: 1}]}),
    ]
    entries[1].type = HOSTILE
    for entry in entries:
        line = encode(entry)
        for shown in (line_for_people(decode(line)), line_for_programs(line)):
            assert shown.isascii()
            assert shown.isprintable()
        assert json.loads(line_for_programs(line)) == json.loads(line)
    shown = line_for_people(decode(encode(entries[0])))
    assert "  9  decision  " not in shown.replace('9  decision"', ""), "blanks in a name stand in quotes"


@pytest.mark.parametrize(
    "body",
    [
        "7", "[]", '"x"', "{}", '{"unmapped":7,"actor":[],"dst_endpoint":"x"}',
        '{"unmapped":{"reasons":[7,{"rule":[]}],"verdict":[]},"dst_endpoint":{"ip":{},"port":[]},"traffic":{"a":1}}',
        '{"actor":{"process":{"pid":{},"file":7,"user":[]}},"src_endpoint":{"ip":"no address"}}',
    ],
)  # fmt: skip
def test_a_body_of_any_shape_can_be_shown_and_filtered(body: str) -> None:
    line = f'{{"seq":1,"time_ns":2,"mono_ns":3,"boot":"","type":"x","ocsf":{body}}}'.encode()
    entry = decode(line)
    assert line_for_people(entry)
    everything = Filter(verdict="x", name="x", exe="x", rule="x", address=ipaddress.ip_network("10.0.0.0/8"))
    assert not everything.matches(entry)
    for condition in ({"verdict": "x"}, {"name": "x"}, {"exe": "x"}, {"rule": "x"}):
        assert not Filter(**condition).matches(entry)


def test_a_damaged_line_is_one_sentence_with_its_place(layout: Layout) -> None:
    path = layout.segments()[0].lines
    path.write_bytes(path.read_bytes() + b"{}\n")
    with pytest.raises(FormatError, match=r"00000000000000000000\.jsonl at byte \d+: The line is no entry"):
        list(read(layout, Filter()))
