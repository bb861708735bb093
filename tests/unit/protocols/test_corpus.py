"""The captures of ../shared/corpus, where that folder lies beside the project: every hello that is known to
be in them."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

from engine.model.facts import NameState
from engine.protocols.capture import records
from engine.protocols.survey import Sighting, Survey

CORPUS = Path(__file__).parents[4] / "shared" / "corpus"


def truth() -> dict[str, list[dict[str, str]]]:
    rows = defaultdict(list)
    if (CORPUS / "truth.csv").is_file():
        with (CORPUS / "truth.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                rows[row["pcap"]].append(row)
    return rows


def sightings(capture: Path) -> list[Sighting]:
    survey = Survey()
    found = []
    with capture.open("rb") as stream:
        for record in records(stream, capture.name):
            found += survey.feed(record)
    return found + survey.finish()


def told(row: dict[str, str]) -> tuple[object, ...]:
    flow = (row["transport"], row["src"], int(row["sport"]), row["dst"], int(row["dport"]))
    late = row["ch_at_stream_start"] == "0"
    return *flow, row["sni_hex"], int(row["ch_bytes"]), late, row["ech"] == "1", row["vlan"]


def seen(sighting: Sighting) -> tuple[object, ...]:
    flow = (sighting.transport, str(sighting.src), sighting.flow[1], str(sighting.dst), sighting.flow[3])
    reading = sighting.reading
    vlans = ",".join(str(vlan) for vlan in sighting.vlans)
    return *flow, reading.raw_name.hex(), reading.size, sighting.late, reading.name.ech, vlans


def test_every_known_hello_is_found_and_no_other() -> None:
    for capture, rows in truth().items():
        found = [one for one in sightings(CORPUS / "zeek" / capture) if one.reading.state is not NameState.UNSUPPORTED]
        assert sorted(map(seen, found), key=repr) == sorted(map(told, rows), key=repr), capture
        assert all(one.reading.whole for one in found), capture
