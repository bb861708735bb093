"""What a policy says of sources: what is refused, where, and what comes out."""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.policy.findings import Finding, PolicyRefusedError
from engine.policy.prepare import examine
from engine.policy.sources import FloodLimit, Network, Prefixes, ScanLimit, SourceRules, packed
from tests.support.policies import DEFAULT, Write

SCAN = 'scan_limit := {"ports": 100, "seconds": 10, "block_seconds": 600}'
FLOOD = 'flood_limit := {"syns": 1000, "seconds": 1, "block_seconds": 60}'


def said(folder: Path) -> SourceRules:
    return asyncio.run(examine(folder)).sources


def refused(write: Write, text: str) -> list[Finding]:
    with pytest.raises(PolicyRefusedError) as caught:
        said(write({"sallyport.rego": f"{DEFAULT}\n{text}\n"}))
    return [finding for finding in caught.value.findings if not finding.warning]


def test_lists_and_limits_come_out_as_they_were_said(write: Write) -> None:
    text = 'source_deny contains "192.0.2.0/24"\n\nsource_allow contains p if some p in data.lists.friends\n\n'
    folder = write(
        {
            "sallyport.rego": f"{DEFAULT}\n{text}{SCAN}\n\n{FLOOD}\n",
            "lists/f.json": {"friends": ["192.0.2.7", "2001:db8::/32"]},
        }
    )
    rules = said(folder)
    assert list(rules.deny.texts()) == ["192.0.2.0/24"]
    assert list(rules.allow.texts()) == ["192.0.2.7/32", "2001:db8::/32"]
    assert (rules.scan, rules.flood) == (ScanLimit(100, 10, 600), FloodLimit(1000, 1, 60))
    assert rules.judge


def test_limits_may_come_from_data(write: Write) -> None:
    folder = write(
        {
            "sallyport.rego": f"{DEFAULT}\nscan_limit := data.settings.scan\n",
            "settings/s.json": {"scan": {"ports": 20, "seconds": 5, "block_seconds": 30}},
        }
    )
    assert said(folder).scan == ScanLimit(20, 5, 30)


def test_a_policy_that_says_nothing_of_sources_judges_none(write: Write) -> None:
    assert said(write({})) == SourceRules()
    friends = said(write({"sallyport.rego": f'{DEFAULT}\nsource_allow contains "::/0"'}))
    assert friends.allow
    assert not friends.judge


@pytest.mark.parametrize(
    ("text", "message", "mend"),
    [
        ('scan_limit contains "x"', "scan_limit is no plain object", "write scan_limit := "),
        (f"{SCAN}\n\nscan_limit := data.x", "a second scan_limit", "remove one"),
        ("flood_limit := {}", "flood_limit is no object of syns, seconds, block_seconds", "write flood_limit := "),
        ("flood_limit := 7", "flood_limit is no object of syns", "write flood_limit := "),
        (SCAN.replace("ports", "prots"), "scan_limit is no object of ports", "write scan_limit := "),
        (SCAN.replace("600", '600, "more": 1'), "scan_limit is no object of ports", "write scan_limit := "),
        (SCAN.replace("100", '"100"'), "ports of scan_limit is out of bounds: '100'", "from 2 to 512"),
        (SCAN.replace("100", "true"), "ports of scan_limit is out of bounds: True", "from 2 to 512"),
        (SCAN.replace("100", "1"), "ports of scan_limit is out of bounds: 1", "from 2 to 512"),
        (SCAN.replace("100", "513"), "ports of scan_limit is out of bounds: 513", "from 2 to 512"),
        (SCAN.replace("10,", "0,"), "seconds of scan_limit is out of bounds: 0", "from 1 to 3600"),
        (SCAN.replace("600", "604801"), "block_seconds of scan_limit is out of bounds", "from 1 to 604800"),
        (FLOOD.replace("1000", "2.5"), "syns of flood_limit is out of bounds: 2.5", "whole number"),
        (f"{SCAN} if false", "scan_limit has no value", "write scan_limit := "),
        ("source_allow := 7", "source_allow is no set of prefixes", "source_allow contains prefix"),
        ('source_allow contains "10.0.0.1/8"', "source_allow has no prefix: '10.0.0.1/8'", "without host bits"),
        ("source_allow contains input.dest.address", "source_allow reads input", "from data"),
        (
            'scan_limit := {"ports": input.dest.port, "seconds": 1, "block_seconds": 1}',
            "scan_limit reads input",
            "data",
        ),
    ],
)
def test_anything_else_is_refused_with_its_place_and_mend(write: Write, text: str, message: str, mend: str) -> None:
    found = refused(write, text)
    [finding] = [finding for finding in found if message in finding.message]
    assert finding.file == "sallyport.rego"
    assert finding.line >= 5
    assert mend in finding.mend


@given(
    st.lists(st.one_of(st.ip_addresses(network="10.0.0.0/16"), st.ip_addresses(network="2001:db8::/100")), max_size=9)
)
@settings(deadline=None)
def test_prefixes_are_the_networks_that_they_were_made_of(addresses: list[Network]) -> None:
    chance = random.Random(len(addresses))
    networks = {ipaddress.ip_network((one, chance.randint(16, one.max_prefixlen)), strict=False) for one in addresses}
    prefixes = Prefixes.of(networks)
    assert len(prefixes) == len(networks) == sum(count for _, _, count in prefixes.counts())
    assert {ipaddress.ip_network(text) for text in prefixes.texts()} == networks
    assert Prefixes.of(prefixes.texts()) == prefixes


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.0/8", "10.0.0.0", "10.0.0.0/255.0.0.0", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8",
        "010.0.0.1", "10.1", "::/0", "::1", "::ffff:192.0.2.0/120", "::ffff:192.0.2.1", "::ffff:0:0/95", "::192.0.2.1",
        "2001:db8::1/64", "2001:DB8::/32", "2001:db8::/129", "", "/8", "example.org", "10.0.0.0/\u0668",
    ],
)  # fmt: skip
def test_a_prefix_is_read_as_the_library_reads_it(text: str) -> None:
    def read(by: Callable[[str], object]) -> object:
        try:
            return by(text)
        except ValueError:
            return None

    def library(text: str) -> tuple[int, int, bytes]:
        network = ipaddress.ip_network(text)
        if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
            mapped = network.network_address.ipv4_mapped
            if mapped is not None:
                network = ipaddress.IPv4Network((mapped, network.prefixlen - 96))
        return network.version, network.prefixlen, network.network_address.packed

    assert read(packed) == read(library)
