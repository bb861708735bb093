"""What the lab's policy says beyond the starter library, once it has been told to: what may come in, what is rejected,
who a container is, which addresses DNS has named, and how much a source may call."""

from __future__ import annotations

from engine.lab.topology import ANSWERED, SHOP, SHOP6, UNANSWERED

INBOUND_PORT, CLOSED_PORT, REJECTED_PORT = 7000, 7002, 7004
"""Ports of the client's side: served to others, not served, and one whose callers are told so."""
REJECTED_SERVICES = 7005, 7009
"""Ports of the server's side; whoever calls them is told at once that nobody may."""
ANSWERED_NAME = "answered.example"
SCAN_PORTS, FLOOD_SYNS = 30, 100

LIMITS = f"""
scan_limit := {{"ports": {SCAN_PORTS}, "seconds": 60, "block_seconds": 600}}

flood_limit := {{"syns": {FLOOD_SYNS}, "seconds": 60, "block_seconds": 600}}
"""
RULES = {
    "inbound": """\
package sallyport

inbound_verdict := "deny"
""",
    "lab_inbound": f"""\
package sallyport.rules.lab_inbound

scope := {{"dest", "direction"}}

target_scope := {{"direction"}}

target if input.direction == "ingress"

allow contains "served to everybody" if input.dest.port == {INBOUND_PORT}

reject contains "not served any more" if input.dest.port == {REJECTED_PORT}
""",
    "lab_rejected": f"""\
package sallyport.rules.lab_rejected

scope := {{"dest"}}

reject contains "nobody may call this service" if input.dest.port in {{{", ".join(map(str, REJECTED_SERVICES))}}}
""",
    "lab_shop": f"""\
package sallyport.rules.lab_shop

scope := {{"cgroup", "dest"}}

target_scope := {{"dest"}}

target if input.dest.address in {{"{SHOP}", "{SHOP6}"}}

deny contains "this address is for the shop alone" if input.cgroup.unit != "shop.service"
""",
    "lab_answered": f"""\
package sallyport.rules.lab_answered

scope := {{"dest", "dest_names"}}

target_scope := {{"dest"}}

target if input.dest.address in {{"{ANSWERED}", "{UNANSWERED}"}}

deny contains "no listed name was answered for this address" if not listed

listed if "{ANSWERED_NAME}" in input.dest_names
""",
}
