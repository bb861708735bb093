"""What an entry says in OCSF."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from audit import ocsf
from audit.entry import Entry, EntryType, Generation, encode, note

FORMAT = (Path(__file__).parents[3] / "audit" / "FORMAT.md").read_text(encoding="utf-8")
PROCESS = ocsf.Process(
    pid=41,
    comm="curl",
    exe="/usr/bin/curl",
    uid=1000,
    user="alice",
    cgroup="/system.slice/x.service",
    unit="x.service",
    container="c0ffee",
)
FLOW = ocsf.Flow(
    src_ip="10.0.0.2",
    src_port=40000,
    dst_ip="192.0.2.1",
    dst_port=443,
    interface="eth0",
    locality="public",
    cookie="77",
    process=PROCESS,
    name="www.example.com",
    name_state="complete",
    ech=True,
    versions=("1.3", "1.2"),
    alpn=("h2",),
    ja4="t13d",
)


def said(entry: Entry) -> dict[str, Any]:
    body = json.loads(encode(entry))["ocsf"]
    assert isinstance(body, dict)
    return body


def test_a_denied_name_says_everything() -> None:
    entry = ocsf.decision(
        FLOW,
        "deny",
        event="payload",
        stage="payload",
        scope={"name", "exe"},
        reasons=[("names", "on the list"), ("default", "no")],
        held_us=210,
        time_ns=5_000_000_000,
        generation=Generation(3, "ab"),
    )
    assert json.loads(encode(entry))["generation"]["number"] == 3
    assert said(entry) == {
        "class_uid": 4001,
        "category_uid": 4,
        "activity_id": 5,
        "type_uid": 400105,
        "severity_id": 2,
        "metadata": {
            "version": "1.5.0",
            "product": {"name": "Sallyport", "vendor_name": "Sallyport"},
            "profiles": ["security_control"],
        },
        "time": 5000,
        "action_id": 2,
        "disposition_id": 2,
        "disposition": "Blocked",
        "src_endpoint": {"ip": "10.0.0.2", "port": 40000, "interface_name": "eth0"},
        "dst_endpoint": {"ip": "192.0.2.1", "port": 443, "hostname": "www.example.com"},
        "connection_info": {
            "direction_id": 2,
            "protocol_name": "tcp",
            "protocol_num": 6,
            "protocol_ver_id": 4,
            "uid": "77",
        },
        "actor": {
            "process": {
                "pid": 41,
                "name": "curl",
                "file": {"name": "curl", "path": "/usr/bin/curl", "type_id": 1},
                "user": {"uid": "1000", "name": "alice"},
                "container": {"uid": "c0ffee"},
            }
        },
        "tls": {
            "sni": "www.example.com",
            "tls_extension_list": [
                {"type_id": 16, "data": {"protocols": ["h2"]}},
                {"type_id": 43, "data": {"versions": ["1.3", "1.2"]}},
            ],
        },
        "ja4_fingerprint_list": [{"type_id": 1, "type": "JA4", "value": "t13d"}],
        "firewall_rule": {"name": "names", "message": "on the list"},
        "unmapped": {
            "event": "payload",
            "stage": "payload",
            "verdict": "deny",
            "scope": ["exe", "name"],
            "reasons": [{"rule": "names", "message": "on the list"}, {"rule": "default", "message": "no"}],
            "name_state": "complete",
            "ech": True,
            "held_us": 210,
            "locality": "public",
            "cgroup": "/system.slice/x.service",
            "unit": "x.service",
        },
    }


@pytest.mark.parametrize(
    ("verdict", "more", "activity", "action", "disposition", "severity"),
    [
        ("allow", {}, 1, 1, "Allowed", 1),
        ("undecided", {}, 1, 1, "Allowed", 1),
        ("deny", {}, 5, 2, "Blocked", 2),
        ("reject", {}, 5, 2, "Rejected", 2),
        ("allow", {"would": "deny"}, 1, 3, "Logged", 2),
        ("allow", {"would": "allow"}, 1, 3, "Logged", 1),
        ("allow", {"ignored": True}, 1, 1, "No Action", 1),
        ("deny", {"failed": True}, 5, 2, "Blocked", 4),
    ],
)
def test_the_outcome_of_a_verdict(verdict, more, activity, action, disposition, severity) -> None:
    body = said(ocsf.decision(ocsf.Flow(), verdict, event="connect", stage="connect", **more))
    assert (body["activity_id"], body["action_id"]) == (activity, action)
    assert (body["disposition"], body["severity_id"]) == (disposition, severity)
    assert body["unmapped"]["verdict"] == verdict
    for member, value in more.items():
        assert body["unmapped"][member] == value


def test_an_allowed_payload_is_traffic_and_a_kernel_verdict_is_a_flow() -> None:
    entry = ocsf.decision(FLOW, "allow", event="payload", stage="payload", cached=True, kind="flow")
    assert entry.type == "flow"
    assert said(entry)["activity_id"] == 6
    assert said(entry)["unmapped"]["cached"] is True


def test_what_is_not_known_is_absent() -> None:
    body = said(ocsf.decision(ocsf.Flow(dst_ip="::1"), "allow", event="connect", stage="connect"))
    assert not {"src_endpoint", "actor", "tls", "ja4_fingerprint_list", "firewall_rule", "traffic"} & set(body)
    assert body["connection_info"]["protocol_ver_id"] == 6
    unknown = said(ocsf.decision(ocsf.Flow(process=ocsf.Process()), "allow", event="connect", stage="connect"))
    assert unknown["actor"] == {"process": {"pid": 0}}


def test_a_process_of_root_has_its_user() -> None:
    body = said(ocsf.process_event(ocsf.Process(9, "sh", "/bin/sh", uid=0), "exec"))
    assert body["process"]["user"] == {"uid": "0"}


def test_a_socket_that_closed_has_its_bytes_and_its_life() -> None:
    body = said(ocsf.socket_close(FLOW, bytes_in=3, bytes_out=4, duration_ns=2_500_000_000))
    assert (body["activity_id"], body["traffic"], body["duration"]) == (
        2,
        {"bytes_in": 3, "bytes_out": 4, "bytes": 7},
        2500,
    )
    assert said(ocsf.socket_close(FLOW, bytes_in=0, bytes_out=0, duration_ns=0))["traffic"]["bytes"] == 0
    assert said(ocsf.socket_open(FLOW))["activity_id"] == 1
    assert "traffic" not in said(ocsf.socket_open(FLOW))


@pytest.mark.parametrize(("event", "activity"), [("exec", 1), ("exit", 2)])
def test_processes_have_their_own_class(event, activity: int) -> None:
    entry = ocsf.process_event(PROCESS, event)
    body = said(entry)
    assert entry.type == "socket"
    assert (body["class_uid"], body["category_uid"], body["type_uid"]) == (1007, 1, 100700 + activity)
    assert body["process"]["file"]["path"] == "/usr/bin/curl"
    assert body["unmapped"]["cgroup"] == "/system.slice/x.service"


def test_a_path_that_is_no_text_is_written_byte_by_byte() -> None:
    entry = ocsf.process_event(ocsf.Process(1, "x", "/tmp/\udcff\udc80a"), "exec")
    assert said(entry)["process"]["file"]["path"] == "/tmp/\\xff\\x80a"
    assert json.loads(encode(note("alert", **{"k\udcfe": ["\udcfd"]})))["detail"] == {"k\\xfe": ["\\xfd"]}


def test_the_specification_names_every_type_and_every_attribute() -> None:
    for kind in get_args(EntryType):
        assert f"`{kind}`" in FORMAT
    body = said(ocsf.decision(FLOW, "deny", event="x", stage="x", reasons=[("a", "b")], would="deny"))
    body |= said(ocsf.socket_close(FLOW, bytes_in=1, bytes_out=1, duration_ns=1))
    missing = [name for name in {**body, **body["unmapped"]} if not re.search(rf"`{name}[`.]", FORMAT)]
    assert missing == []
