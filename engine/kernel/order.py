"""What the engine and the loader say to each other; by itself, so that the engine imports neither netlink nor bcc.

The engine writes an order as JSON to the loader's stdin and reads one line back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from engine.errors import InterfaceError, KernelError, PrivilegeError

_ERRORS = {kind.__name__: kind for kind in (InterfaceError, KernelError, PrivilegeError)}


@dataclass(frozen=True)
class Order:
    state_dir: str
    interfaces: list[str]
    cgroup: str
    mode: str
    pid: int
    inside: list[str] = field(default_factory=list)
    """Interfaces and patterns by which others reach the network through this host."""
    xdp: str = "auto"
    sizes: dict[str, int] = field(default_factory=dict)
    """Bounds of maps by their names in abi.h. Only maps that are created take notice: pinned ones stay as they are."""


@dataclass
class Loaded:
    """What now stands. `programs`: name -> {id, instructions, verified}.

    `seconds` since the order came: until the `programs` were there, until they were `loaded`, in `total`.
    """

    hold_ifindex: int = 0
    held_ifindex: int = 0
    interfaces: dict[str, int] = field(default_factory=dict)
    xdp: dict[str, str] = field(default_factory=dict)
    programs: dict[str, dict[str, int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    taken_over: bool = False
    headers: str = ""
    """The header tree that was borrowed, empty where the running kernel has its own."""
    compiled_because: str = ""
    """Why the programs were compiled, as the end of a sentence; empty where they were kept from an earlier start."""
    not_kept_because: str = ""
    """Why they could not be kept for the next start, empty where they are."""


@dataclass
class Detached:
    """What a detach did. `problems`: one sentence each."""

    instance: str
    interfaces: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def reply(text: str) -> Loaded:
    """Read what the loader answered; raises the error that it tells of."""
    try:
        answer = json.loads(text.strip().splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise KernelError("The loader ended without an answer", hint="Look above for what it said.") from error
    if "error" in answer:
        kind = _ERRORS.get(answer["error"], KernelError)
        raise kind(answer["message"], hint=answer["hint"])
    return Loaded(**answer["loaded"])
