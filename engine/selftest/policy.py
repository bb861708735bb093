"""The selftest's own policy: an address that is denied, an address where names decide, names for one program alone.

It does not use the policy of the host: what is proved must not depend on what somebody made of it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from engine.lab.topology import DENIED, DENIED6, DENIED_SOURCE, NEIGHBOUR, SERVER, SERVER6

GHOST, QUIET = "192.0.2.77", "192.0.2.78"
"""Addresses that no kernel has, one denied and one that names decide for: the witness answers frame by frame."""
ELSEWHERE = "203.0.113.10"
"""Where names decide too: an address of the server beyond the second wire, which no gate is on."""
DENIED_SOURCE6 = "2001:db8:5a11::99"
"""Nothing may come from here, nor from DENIED_SOURCE."""
NAT64 = "64:ff9b::c000:242"
"""What a NAT64 would send to the denied IPv4 address (RFC 6052)."""
DENIED_SUFFIX, ALLOWED_NAME, RESOLVER = "denied.example", "allowed.example", "resolver.example"
PROTECTED, BY_PATH, BY_DIGEST = "protected.example", "by-path.example", "by-digest.example"

_DEFAULT = """\
package sallyport

default_verdict := "allow"

inbound_verdict := "allow"
"""
_PLACES = """\
package sallyport.rules.places

scope := {"dest"}

deny contains "nothing may go to this address" if input.dest.address in data.settings.selftest.denied
"""
_NAMES = """\
package sallyport.rules.names

scope := {"dest", "name"}

target_scope := {"dest"}

default target := false

target if input.dest.address in data.settings.selftest.named

deny contains message if {
	input.name.state != "complete"
	message := sprintf("the server name is %s", [input.name.state])
}

deny contains "this name is denied" if endswith(input.name.value, data.settings.selftest.suffix)
"""
_CALLERS = """\
package sallyport.rules.callers

scope := {"direction", "name", "source"}

target_scope := {"direction"}

default target := false

target if input.direction == "ingress"

deny contains "nothing may come from this address" if input.source.address in data.settings.selftest.callers

deny contains message if {
	input.source.address in data.settings.selftest.named_callers
	input.name.state != "complete"
	message := sprintf("the server name is %s", [input.name.state])
}

deny contains "this name may not be asked for" if {
	input.source.address in data.settings.selftest.named_callers
	endswith(input.name.value, data.settings.selftest.suffix)
}
"""
_PROGRAMS = """\
package sallyport.rules.programs

scope := {"dest", "exe", "name"}

target_scope := {"dest"}

default target := false

target if input.dest.address in data.settings.selftest.named

deny contains "this name is for the listed program alone" if {
	endswith(input.name.value, data.settings.selftest.protected)
	not input.exe.path == data.settings.selftest.listed
}

deny contains "this name is not for this file" if {
	endswith(input.name.value, data.settings.selftest.by_path)
	input.exe.path == data.settings.selftest.unwanted
}

deny contains "this name is not for this file's content" if {
	endswith(input.name.value, data.settings.selftest.by_digest)
	input.exe.sha256 == data.settings.selftest.digest
}
"""


def write_policy(folder: Path, listed: Path, unwanted: Path) -> None:
    """Write the policy folder. `listed`: the program that may reach the protected names; `unwanted`: one that may not
    reach some, by its path, and others, by its digest."""
    for name, text in (("places", _PLACES), ("names", _NAMES), ("programs", _PROGRAMS), ("callers", _CALLERS)):
        rule = folder / "rules" / name / f"{name}.rego"
        rule.parent.mkdir(parents=True)
        rule.write_text(text)
    (folder / "sallyport.rego").write_text(_DEFAULT)
    settings = {
        "denied": [DENIED, DENIED6, GHOST],
        "named": [SERVER, SERVER6, ELSEWHERE, QUIET],
        "callers": [DENIED_SOURCE, DENIED_SOURCE6],
        "named_callers": [NEIGHBOUR],
        "suffix": f".{DENIED_SUFFIX}",
        "protected": f".{PROTECTED}",
        "by_path": f".{BY_PATH}",
        "by_digest": f".{BY_DIGEST}",
        "listed": str(listed),
        "unwanted": str(unwanted),
        "digest": hashlib.sha256(unwanted.read_bytes()).hexdigest(),
    }
    (folder / "settings").mkdir()
    (folder / "settings" / "selftest.json").write_text(json.dumps({"selftest": settings}, indent=2) + "\n")
