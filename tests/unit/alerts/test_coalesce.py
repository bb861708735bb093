"""A denied loop is one alert and a count, not a flood; and nothing of it goes missing."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from engine.alerts.alert import Alert, Kind, Severity
from engine.alerts.coalesce import Coalescer


def violation(name: str = "evil.example", rule: str = "denied_names", exe: str = "/usr/bin/curl") -> Alert:
    details = {"dest": "192.0.2.1:443", "name": name, "exe": exe}
    return Alert(0, Kind.VIOLATION, Severity.WARNING, "denied", details, rule=rule)


def test_the_first_is_told_at_once_and_the_repeats_as_one_count_when_the_window_ends() -> None:
    coalescer = Coalescer(60)
    first = violation()
    assert coalescer.offer(first, 0) is first
    assert [coalescer.offer(violation(), second) for second in range(1, 6)] == [None] * 5
    assert coalescer.next_due() == 60
    assert coalescer.due(59.9) == []
    (counted,) = coalescer.due(60)
    assert (counted.count, counted.repeats, counted.rule) == (5, first.id, "denied_names")
    assert counted.id != first.id


def test_a_loop_that_goes_on_is_one_alert_a_window_and_a_quiet_one_starts_afresh() -> None:
    coalescer = Coalescer(60)
    first = violation()
    coalescer.offer(first, 0)
    coalescer.offer(violation(), 1)
    assert [alert.count for alert in coalescer.due(60)] == [1]
    assert coalescer.offer(violation(), 61) is None
    assert [(alert.count, alert.repeats) for alert in coalescer.due(120)] == [(1, first.id)]
    assert coalescer.due(180) == []
    assert coalescer.next_due() is None
    again = violation()
    assert coalescer.offer(again, 181) is again


def test_another_name_destination_executable_or_rule_is_another_alert() -> None:
    coalescer = Coalescer(60)
    base = violation()
    others = [
        violation(name="worse.example"),
        violation(rule="exe_names"),
        violation(exe="/usr/bin/wget"),
        replace(base, details={**base.details, "dest": "192.0.2.2:443"}),
    ]
    for alert in [base, *others]:
        assert coalescer.offer(alert, 0) is alert
    assert coalescer.offer(replace(base, details={**base.details, "pid": 7}), 1) is None


def test_a_broken_policy_is_told_each_time_it_is_saved_and_a_window_of_nothing_tells_all() -> None:
    broken = Alert(0, Kind.POLICY_BROKEN, Severity.CRITICAL, "rules/a/a.rego:3:1: unexpected eof")
    coalescer = Coalescer(60)
    assert coalescer.offer(broken, 0) is broken
    assert coalescer.offer(broken, 1) is broken
    everything = Coalescer(0)
    assert [everything.offer(violation(), 0) is not None for _ in range(3)] == [True] * 3


def test_random_names_fill_no_memory_and_are_counted_by_rule() -> None:
    coalescer = Coalescer(60, keys=10)
    told = [coalescer.offer(violation(name=f"{number}.example"), 0) for number in range(1000)]
    assert sum(alert is not None for alert in told) == 11
    assert sum(alert.count for alert in coalescer.flush()) == 989


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 40)), max_size=60))
def test_told_and_counted_together_are_everything_that_happened(events: list[tuple[int, float]]) -> None:
    coalescer = Coalescer(60, keys=3)
    now, told = 0.0, []
    for name, pause in events:
        now += pause
        told += coalescer.due(now)
        alert = coalescer.offer(violation(name=str(name)), now)
        told += [alert] if alert is not None else []
    told += coalescer.flush()
    assert sum(alert.count for alert in told) == len(events)
