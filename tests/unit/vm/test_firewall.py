"""What libvirt leaves in the packet filter goes again, and nothing that was there before or that holds a rule."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vagrant.vm import firewall

# iptables over a file as iptables-save writes it.
_IPTABLES = """#!/bin/sh
# -t TABLE -D CHAIN -j OTHER, or -t TABLE -X CHAIN
case $3 in
    -D) drop="-A $4 $5 $6" ;;
    -X) drop=":$4 - [0:0]" ;;
esac
awk -v table="*$2" -v drop="$drop" '/^[*]/ { here = ($0 == table) } !(here && $0 == drop)' "$0.rules" >"$0.new"
mv "$0.new" "$0.rules"
"""
BEFORE = """*mangle
:POSTROUTING ACCEPT [0:0]
:LIBVIRT_PRT - [0:0]
-A POSTROUTING -j LIBVIRT_PRT
COMMIT
*filter
:INPUT ACCEPT [0:0]
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
COMMIT
"""
DURING = """*mangle
:POSTROUTING ACCEPT [0:0]
:LIBVIRT_PRT - [0:0]
-A POSTROUTING -j LIBVIRT_PRT
COMMIT
*nat
:LIBVIRT_PRT - [0:0]
-A POSTROUTING -j LIBVIRT_PRT
-A LIBVIRT_PRT -s 192.168.121.0/24 -j MASQUERADE
COMMIT
*filter
:INPUT ACCEPT [0:0]
:LIBVIRT_INP - [0:0]
-A INPUT -j LIBVIRT_INP
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
COMMIT
"""


def test_empty_chains_that_came_go_with_their_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = tmp_path / "iptables.rules"
    for name, text in (("iptables", _IPTABLES), ("iptables-save", f"#!/bin/sh\ncat {rules}\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(firewall, "search_path", lambda: f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(firewall, "_FAMILIES", ("iptables",))
    rules.write_text(BEFORE)
    with firewall.as_before():
        rules.write_text(DURING)
    masquerading = DURING[DURING.index("*nat") : DURING.index("*filter")]
    assert rules.read_text() == BEFORE.replace("*filter", f"{masquerading}*filter")


def test_where_there_is_no_packet_filter_nothing_is_asked_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firewall, "search_path", lambda: "/nowhere")
    with firewall.as_before():
        pass
