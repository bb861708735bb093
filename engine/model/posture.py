"""The posture: what happens to a packet when nobody can answer for it.

One literal table, printed at start: failure is stated, not discovered. `closed` stops what cannot be judged,
`open` lets it pass; both are counted and alarmed. The defaults are closed wherever open would let a program
choose its own fate: filling a queue or a map, sending fragments or half a hello, and stalling the engine are
all things that the judged party can bring about. Never-deny entries, standing verdicts and observe mode are
unaffected by any of this, so a closed posture does not lock an administrator out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType


class Stance(str, Enum):
    """What the gate does with the packet."""

    OPEN = "open"
    CLOSED = "closed"

    @property
    def passes(self) -> bool:
        return self is Stance.OPEN


class Condition(str, Enum):
    """When nobody can answer. The values are the keys of the configuration's `[posture]` table."""

    ENGINE_ABSENT = "engine_absent"
    HOLD_QUEUE_FULL = "hold_queue_full"
    MAP_FULL = "map_full"
    PARSER_PARTIAL = "parser_partial"
    PARSER_MALFORMED = "parser_malformed"
    EVALUATOR_FAILED = "evaluator_failed"
    IDENTITY_GONE = "identity_gone"
    DISK_FULL = "disk_full"
    FRAGMENT = "fragment"
    UNKNOWN_PROTOCOL = "unknown_protocol"
    UNKNOWN_INTERFACE = "unknown_interface"


@dataclass(frozen=True)
class Line:
    """One line of the table: the default, what brings the condition about, and why that default."""

    default: Stance
    when: str
    why: str


TABLE: Mapping[Condition, Line] = MappingProxyType(
    {
        Condition.ENGINE_ABSENT: Line(
            Stance.CLOSED,
            "the heartbeat is stale and no verdict stands",
            "else a crash of the engine is the way out; verdicts that stand go on standing",
        ),
        Condition.HOLD_QUEUE_FULL: Line(
            Stance.CLOSED,
            "more is on hold than the queue may keep",
            "else flooding the queue lets one more packet through unjudged",
        ),
        Condition.MAP_FULL: Line(
            Stance.CLOSED,
            "the kernel has no room to remember who a socket belongs to, or its verdict",
            "else opening many sockets makes the next one anonymous",
        ),
        Condition.PARSER_PARTIAL: Line(
            Stance.CLOSED,
            "a hello is not whole within the bounds of the hold, and no rule speaks about it",
            "else one byte held back hides the name",
        ),
        Condition.PARSER_MALFORMED: Line(
            Stance.CLOSED,
            "a hello contradicts itself, and no rule speaks about it",
            "else a name that only the server understands goes unread",
        ),
        Condition.EVALUATOR_FAILED: Line(
            Stance.CLOSED,
            "the policy gave no usable answer: an error, a time-out, an undefined result",
            "else an input that trips a rule is allowed by it",
        ),
        Condition.IDENTITY_GONE: Line(
            Stance.CLOSED,
            "a process, its control group or the bytes of its program are gone before they are looked up, "
            "and the verdict depends on them",
            "else whoever sends and ends at once, or touches its own file, escapes the rules about it",
        ),
        Condition.DISK_FULL: Line(
            Stance.OPEN,
            "the audit log cannot be written",
            "verdicts do not depend on the log, the loss is counted and signed once there is room; "
            "closed would let whoever fills the disk stop the host",
        ),
        Condition.FRAGMENT: Line(
            Stance.CLOSED,
            "an IP fragment belongs to no flow that is decided",
            "only the first fragment has ports, and a hello can be split below the gate",
        ),
        Condition.UNKNOWN_PROTOCOL: Line(
            Stance.CLOSED,
            "a packet's transport cannot be read, and no verdict for its destination stands",
            "else a tunnel of another protocol carries what TCP may not",
        ),
        Condition.UNKNOWN_INTERFACE: Line(
            Stance.CLOSED,
            "inside interfaces are guarded, and a packet is forwarded from one that is not (yet)",
            "else whoever appears behind a new interface is the first to go unjudged",
        ),
    }
)


@dataclass(frozen=True)
class Posture:
    """The stance for every condition: always the whole table."""

    stances: Mapping[Condition, Stance]

    def __post_init__(self) -> None:
        missing = sorted(condition.value for condition in Condition if condition not in self.stances)
        if missing:
            raise ValueError(f"a posture states every condition, and here is none for {', '.join(missing)}")
        object.__setattr__(self, "stances", MappingProxyType(dict(self.stances)))

    def __getitem__(self, condition: Condition) -> Stance:
        return self.stances[condition]

    @classmethod
    def default(cls) -> Posture:
        return cls({condition: line.default for condition, line in TABLE.items()})

    def with_changes(self, changes: Mapping[Condition, Stance]) -> Posture:
        """Return this posture with some conditions stated otherwise."""
        return Posture({**self.stances, **changes})

    def document(self) -> dict[str, str]:
        """Return the stances as JSON-ready values, in the table's order."""
        return {condition.value: self.stances[condition].value for condition in TABLE}

    def text(self) -> str:
        """Return the table for a person: condition, stance (`*`: not the default), when it applies."""
        width = max(len(condition.value) for condition in TABLE)
        lines = [f"{'posture':{width}}  stance   when"]
        for condition, line in TABLE.items():
            stance = self.stances[condition]
            mark = "" if stance is line.default else "*"
            lines.append(f"{condition.value:{width}}  {stance.value + mark:7}  {line.when}")
        return "\n".join(lines) + "\n"
