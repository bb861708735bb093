"""Scenarios as stories: a text for people, in which the indented lines are commands and what they are expected to say.

    enforcer$ curl --silent http://peer/
    the peer

`enforcer` and `peer` are the two machines; `operator` has its hand on the power. A line that begins with `> ` goes on
with the command. In what is expected, `...` stands for any text within a line, and alone for any number of lines;
`[exit 7]` at the end expects that exit code and not 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vagrant.vm.errors import UsageError

ACTORS = ("enforcer", "peer", "operator")
FOLDER = Path(__file__).resolve().parents[1] / "scenarios"
_COMMAND = re.compile(r"    (\w+)\$ (.+)")
_EXIT = re.compile(r"\[exit (\d+)\]")


@dataclass
class Step:
    """One command of a story. `line`: where it stands in the file."""

    actor: str
    command: str
    line: int
    expected: list[str] = field(default_factory=list)
    code: int = 0


@dataclass(frozen=True)
class Story:
    name: str
    title: str
    steps: tuple[Step, ...]

    @property
    def needs_power(self) -> bool:
        """Can it be played only where there is a machine to switch off?"""
        return any(step.actor == "operator" for step in self.steps)


@dataclass(frozen=True)
class Answer:
    code: int
    said: str


@dataclass(frozen=True)
class Played:
    """How a step went. `wrong`: empty, or what was not as expected."""

    step: Step
    answer: Answer
    wrong: str


def parse(name: str, text: str) -> Story:
    """Raises UsageError with the line for a story that says nothing, or names an actor that there is not."""
    title = next((line[2:].strip() for line in text.splitlines() if line.startswith("# ")), name)
    steps: list[Step] = []
    open_step: Step | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if found := _COMMAND.fullmatch(line):
            if found[1] not in ACTORS:
                raise UsageError(f"{name}, line {number}: there is no {found[1]}.", hint=f"There are {ACTORS}.")
            open_step = Step(found[1], found[2], number)
            steps.append(open_step)
        elif not line.startswith("    "):
            open_step = open_step if not line.strip() and open_step and open_step.expected else None
        elif open_step is None:
            raise UsageError(f"{name}, line {number}: an answer without a command.", hint="Begin with ACTOR$ COMMAND.")
        elif line.startswith("    > ") and not open_step.expected:
            open_step.command += " " + line[6:]
        elif exit_code := _EXIT.fullmatch(line.strip()):
            open_step.code = int(exit_code[1])
        else:
            open_step.expected.append(line[4:])
    if not steps:
        raise UsageError(f"{name} has no command in it.", hint="Commands are indented: `    enforcer$ true`.")
    return Story(name, title, tuple(steps))


def read(folder: Path = FOLDER) -> list[Story]:
    """The stories of a folder, in the order of their names."""
    return [parse(file.stem, file.read_text()) for file in sorted(folder.glob("*.md"))]


def matches(expected: Sequence[str], said: Sequence[str]) -> bool:
    """Are these the lines that were expected?"""
    if not expected:
        return not said
    first, *rest = expected
    if first.strip() == "...":
        return any(matches(rest, said[skipped:]) for skipped in range(len(said) + 1))
    if not said:
        return False
    pattern = ".*".join(re.escape(part) for part in first.rstrip().split("..."))
    return bool(re.fullmatch(pattern, said[0].rstrip())) and matches(rest, said[1:])


def judge(step: Step, answer: Answer) -> str:
    """Say what is wrong with an answer; empty when nothing is. A command without expected lines may say anything."""
    said = answer.said.strip("\n").splitlines()
    if answer.code != step.code:
        return f"exit code {answer.code} and not {step.code}"
    if step.expected and not matches(step.expected, said):
        return "it said something else"
    return ""


def play(story: Story, carry_out: Callable[[Step], Answer]) -> Iterator[Played]:
    """Carry out the steps one after the other, up to the first that goes wrong: what follows would mean nothing."""
    for step in story.steps:
        answer = carry_out(step)
        wrong = judge(step, answer)
        yield Played(step, answer, wrong)
        if wrong:
            return


def choose(told: Sequence[Story], names: Sequence[str]) -> list[Story]:
    """The stories of these names, or all. Raises UsageError for a name that there is not."""
    if wrong := set(names) - {story.name for story in told}:
        have = ", ".join(story.name for story in told)
        raise UsageError(f"There is no story {min(wrong)}.", hint=f"There are: {have}.")
    return [story for story in told if not names or story.name in names]


def line(played: Played) -> str:
    """A step for the screen; one that went wrong with what was expected and what came."""
    step = played.step
    text = f"  {'no' if played.wrong else 'ok'}  {step.actor}$ {step.command}"
    if not played.wrong:
        return text
    expected = "".join(f"\n        {one}" for one in step.expected) or " anything"
    said = "".join(f"\n        {one}" for one in played.answer.said.splitlines()[-40:]) or " nothing"
    return f"{text}\n      line {step.line}: {played.wrong}\n      expected:{expected}\n      it said:{said}"
