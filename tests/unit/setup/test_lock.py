"""The lock files say what pyproject.toml asks for, exactly and with hashes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def pins(name: str) -> dict[str, list[tuple[Requirement, int]]]:
    """Read a lock file: canonical name -> its requirements, each with the number of hashes that it accepts."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, list[tuple[Requirement, int]]] = {}
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            words, *hashes = re.split(r"\s+--hash=sha256:", line.strip())
            assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in hashes), line
            requirement = Requirement(words)
            found.setdefault(canonicalize_name(requirement.name), []).append((requirement, len(hashes)))
    return found


def on(locked: list[tuple[Requirement, int]], python: str) -> list[Requirement]:
    marks = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}
    return [pin for pin, _ in locked if pin.marker is None or pin.marker.evaluate(marks)]


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt", "requirements-fuzz.txt"])
def test_every_pin_is_exact_and_has_hashes(name: str) -> None:
    locked = pins(name)
    assert locked
    for requirement, hashes in (pin for several in locked.values() for pin in several):
        assert re.fullmatch(r"==[0-9][^*,]*", str(requirement.specifier)), requirement
        assert requirement.url is None
        assert hashes > 0, requirement


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_dependency_of_the_project_is_locked_within_its_bounds(name: str, python: str) -> None:
    locked = pins(name)
    for words in PROJECT["project"]["dependencies"]:
        wanted = Requirement(words)
        if wanted.marker is not None and not wanted.marker.evaluate({"python_version": python}):
            continue
        (pin,) = on(locked[canonicalize_name(wanted.name)], python)
        assert wanted.specifier.contains(str(pin.specifier).removeprefix("==")), f"{pin} is outside {wanted}"


@pytest.mark.parametrize("python", PYTHONS)
def test_what_is_tested_is_what_runs(python: str) -> None:
    run, dev = pins("requirements.txt"), pins("requirements-dev.txt")
    for name, several in run.items():
        # A package may be needed by the tools alone on some Python; where both need it, it is the same.
        for pin in on(several, python):
            assert [str(other.specifier) for other in on(dev[name], python)] == [str(pin.specifier)]


def test_the_build_backend_is_the_locked_one() -> None:
    (wanted,) = map(Requirement, PROJECT["build-system"]["requires"])
    ((pin, _),) = pins("requirements-dev.txt")[canonicalize_name(wanted.name)]
    assert pin.specifier == wanted.specifier
