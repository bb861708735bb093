"""The tiers of tests: what each needs, and the rule that a tier which was asked for fails rather than skips.

The folder below tests/ is the tier. A tier with needs states them in NEEDS; a tier that has a marker gives
it to its tests. With --strict-tiers, which `make test` always gives, nothing may be skipped and no folder
that was asked for may be empty: a green run means that every test of it ran.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Generator, Sequence
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is, and nothing of the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

TESTS = Path(__file__).parent


def _not_root() -> str:
    return "" if os.geteuid() == 0 else "root"


def _no_bcc() -> str:
    return "" if importlib.util.find_spec("bcc") else "the distribution's bcc (python3-bpfcc)"


def _no_cgroup2() -> str:
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    return "" if " - cgroup2 " in mounts else "a mounted cgroup2"


def _programs(*names: str) -> Callable[[], str]:
    def missing() -> str:
        path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
        return ", ".join(name for name in names if shutil.which(name, path=path) is None)

    return missing


_LAB = (_not_root, _no_bcc, _no_cgroup2)
NEEDS: dict[str, tuple[Callable[[], str], ...]] = {
    "kernel": (*_LAB, _programs("ip", "nsenter")),
    "e2e": (*_LAB, _programs("ip", "nsenter", "nginx", "curl", "openssl")),
    "host_c": (_programs("cc"),),
}
"""What each tier cannot do without: every function says in words what is not there, or nothing."""


@cache
def missing_for(tier: str) -> str:
    """What this machine lacks for the tier, in words; empty when it lacks nothing."""
    return ", ".join(text for missing in NEEDS.get(tier, ()) if (text := missing()))


def tier_of(path: Path) -> str:
    """The folder directly below tests/ that the file is in; empty for files outside. A conformance suite is in the tier
    of what it runs on, which is the folder below its own."""
    try:
        first, *below = path.relative_to(TESTS).parts
    except ValueError:
        return ""
    return below[0] if first == "conformance" else first


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--strict-tiers",
        action="store_true",
        help="a skipped test fails, and so does a folder that was asked for and has no test",
    )


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        tier = tier_of(item.path)
        if tier in {"kernel", "e2e"}:
            item.add_marker(tier)


def pytest_collection_finish(session: pytest.Session) -> None:
    asked = {
        word: (session.config.invocation_params.dir / word.partition("::")[0]).resolve() for word in session.config.args
    }
    # What is not there or cannot be collected is reported by pytest itself, after this hook, with its own reason.
    if (
        not session.config.getoption("strict_tiers")
        or session.testsfailed
        or not all(path.exists() for path in asked.values())
    ):
        return
    for word, path in asked.items():
        if not any(path == item.path or path in item.path.parents for item in session.items):
            raise pytest.UsageError(f"{word} has no test: a tier that was asked for must run something")


def pytest_runtest_setup(item: pytest.Item) -> None:
    tier = tier_of(item.path)
    if missing := missing_for(tier):
        pytest.fail(
            f"the tier {tier} needs: {missing}. `make setup` installs it; root or sudo runs it.",
            pytrace=False,
        )


def _skip_fails(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.outcome == "skipped":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, which --strict-tiers forbids: {getattr(report, 'wasxfail', None) or reason}"
        vars(report).pop("wasxfail", None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.config.getoption("strict_tiers"):
        _skip_fails(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if collector.config.getoption("strict_tiers"):
        _skip_fails(report)
    return report
