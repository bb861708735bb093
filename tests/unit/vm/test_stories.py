"""Stories: what is read out of the text, and when an answer is the one that was expected."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vagrant.vm.errors import UsageError
from vagrant.vm.stories import Answer, Step, choose, judge, line, matches, parse, play, read

TEXT = """\
# The title

Some words.

    enforcer$ first --with
    > its end
    two lines
    and no more
    peer$ second
    [exit 3]

    operator$ cut enforcer
"""


def test_commands_answers_and_exit_codes_are_told_apart() -> None:
    story = parse("name", TEXT)
    assert story.title == "The title"
    assert [(step.actor, step.command, step.expected, step.code) for step in story.steps] == [
        ("enforcer", "first --with its end", ["two lines", "and no more"], 0),
        ("peer", "second", [], 3),
        ("operator", "cut enforcer", [], 0),
    ]
    assert story.needs_power


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# nothing\n", "no command"),
        ("    somebody$ true\n", "there is no somebody"),
        ("words\n    an answer\n", "line 2: an answer without a command"),
    ],
)
def test_a_text_that_is_no_story_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse("name", text)


@pytest.mark.parametrize(
    ("expected", "said", "fits"),
    [
        (["a"], ["a"], True),
        (["a"], ["a", "b"], False),
        (["a"], [], False),
        (["a...c"], ["abc"], True),
        (["a.c"], ["abc"], False),
        (["...", "end"], ["x", "y", "end"], True),
        (["...", "end"], ["x", "y"], False),
        (["start", "..."], ["start"], True),
    ],
)
def test_what_was_expected(expected: list[str], said: list[str], fits: bool) -> None:
    assert matches(expected, said) is fits


@given(st.lists(st.text("ab.*\\[(", max_size=5), max_size=4))
def test_a_line_matches_itself_and_not_another(lines: list[str]) -> None:
    plain = [one for one in lines if "..." not in one]
    assert matches(plain, plain)
    assert not matches([*plain, "z"], plain)


def test_an_exit_code_that_was_not_expected_is_wrong_whatever_was_said() -> None:
    assert judge(Step("peer", "x", 1, ["a"], 0), Answer(1, "a\n")) == "exit code 1 and not 0"
    assert judge(Step("peer", "x", 1, [], 7), Answer(7, "anything")) == ""


def test_a_story_ends_at_the_first_step_that_goes_wrong_and_shows_what_came() -> None:
    asked: list[str] = []

    def carry_out(step: Step) -> Answer:
        asked.append(step.command)
        return Answer(0, "two lines\nand others\n")

    played = list(play(parse("name", TEXT), carry_out))
    assert asked == ["first --with its end"]
    assert "and no more" in line(played[-1])
    assert "and others" in line(played[-1])


def test_every_story_of_the_project_can_be_read_and_those_with_the_power_are_known() -> None:
    power = {story.name: story.needs_power for story in read()}
    assert power == {
        "10-a-denied-name": False,
        "20-a-hello-in-pieces": False,
        "30-a-reboot": True,
        "40-a-power-cut": True,
    }


def test_a_story_that_there_is_not_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        choose(read(), ["50-a-flood"])
    assert "10-a-denied-name" in caught.value.hint
