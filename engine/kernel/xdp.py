"""Attach or detach the XDP program, by a short-lived process: netlink costs 19 MiB that the engine does not carry.

The program is attached only while a source is denied. On a veth it runs after the driver and copies what segmentation
offload had left in one piece: bulk from outside fell to 0.78 of bare with nothing to deny.

    echo '{"state_dir": "...", "interfaces": ["eth0"], "mode": "auto", "attach": true}' | python -m engine.kernel.xdp
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from engine.errors import SallyportError
from engine.kernel import attach, libbpf
from engine.kernel.pins import Pins


def apply(state_dir: Path, interfaces: list[str], mode: str, *, wanted: bool) -> dict[str, str]:
    """Make each interface have the program, or not. Return {interface: native, generic or off}."""
    program = libbpf.obj_get(Pins.of(state_dir).programs / "gate_source")
    ours = frozenset({int(libbpf.program_info(program).id)})
    found: dict[str, str] = {}
    for name in interfaces:
        index = attach.interface_index(name)
        if not wanted:
            attach.detach_xdp(index, ours)
            found[name] = "off"
        elif attach.standing_xdp(index, ours):
            found[name] = attach.replace_xdp(index, program, None)
        else:
            found[name] = attach.attach_xdp(index, program, mode)
    os.close(program)
    return found


def main() -> int:
    answer: dict[str, Any]
    given = json.load(sys.stdin)
    try:
        answer = {"xdp": apply(Path(given["state_dir"]), given["interfaces"], given["mode"], wanted=given["attach"])}
    except SallyportError as error:
        answer = {"error": error.message}
    except OSError as error:
        answer = {"error": f"XDP could not be attached: {error}"}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
