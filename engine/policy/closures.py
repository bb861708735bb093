"""A policy in pieces that can be examined one by one: each package with all that it can reach, and nothing else.

The principle is that of scopes: what is not given cannot matter. A closure is examined in an interpreter that holds
its modules and its data alone, so what comes out is a function of those bytes, and stays true for as long as they
stay the same. That holds also if the closure were too small: then the examination fails, and the policy is refused.

Two paths meet if one is a prefix of the other. A module reaches every module that defines something which meets a
path that it mentions, and the data files that give something which does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from engine.policy.bundle import Bundle
from engine.policy.summary import Path, Shape, Summary


@dataclass(frozen=True)
class Closure:
    """`own`: the files of the package itself. `modules`: all of its files, `own` among them; `data`: its JSON files.
    `key`: the digest of all their names and bytes; two closures of one key are the same."""

    package: Path
    own: tuple[str, ...]
    modules: tuple[str, ...]
    data: tuple[str, ...]
    key: str
    test: bool = False


@dataclass(frozen=True)
class _Members:
    own: tuple[str, ...]
    modules: tuple[str, ...]
    data: tuple[str, ...]


class _Index:
    """Files by the paths that they define or give."""

    def __init__(self) -> None:
        self._at: dict[Path, list[str]] = {}
        self._below: dict[Path, list[str]] = {}

    def add(self, file: str, paths: Iterable[Path]) -> None:
        for path in paths:
            self._at.setdefault(path, []).append(file)
            for depth in range(len(path)):
                self._below.setdefault(path[:depth], []).append(file)

    def meeting(self, path: Path) -> set[str]:
        """Return the files that have a path which is a prefix or an extension of this one."""
        found = set(self._below.get(path, ()))
        for depth in range(len(path) + 1):
            found.update(self._at.get(path[:depth], ()))
        return found


class Planner:
    """Divides policies into closures. It remembers the last division: an edit seldom changes what reaches what."""

    def __init__(self) -> None:
        self._shapes: dict[str, Shape | tuple[Path, ...]] = {}
        """By file: what decides which closures it is in."""
        self._members: dict[tuple[Path, bool], _Members] = {}
        self._closures: dict[tuple[Path, bool], Closure] = {}
        self._digests: dict[str, str] = {}

    def divide(self, bundle: Bundle, summaries: Mapping[str, Summary]) -> list[Closure]:
        """Return the closures of the policy's packages, then those of its tests' packages, each in order.

        `summaries`: by file, of every module and test.
        """

        def shape(file: str) -> Shape | tuple[Path, ...]:
            return summaries[file].shape if file in summaries else bundle.documents[file].gives

        changed = {file for file, digest in bundle.digests.items() if self._digests.get(file) != digest}
        # Only what has other bytes can have another shape.
        same_files = bundle.digests.keys() == self._digests.keys()
        if not same_files or any(shape(file) != self._shapes[file] for file in changed):
            self._shapes, self._closures = {file: shape(file) for file in bundle.digests}, {}
            tests = frozenset(test.file for test in bundle.tests)
            self._members = {
                (package, test): members
                for test in (False, True)
                for package, members in _members(bundle, summaries, tests, test=test).items()
            }
        self._digests = dict(bundle.digests)
        for at, members in self._members.items():
            untouched = changed.isdisjoint(members.modules) and changed.isdisjoint(members.data)
            if at not in self._closures or not untouched:
                self._closures[at] = _closure(at[0], members, bundle.digests, test=at[1])
        return list(self._closures.values())


def _members(
    bundle: Bundle, summaries: Mapping[str, Summary], tests: frozenset[str], *, test: bool
) -> dict[Path, _Members]:
    """Return the members of each package's closure: of those in force, or of the tests with all that they can see."""
    definitions, given = _Index(), _Index()
    for file, summary in summaries.items():
        if test or file not in tests:
            definitions.add(file, summary.defines)
    for file, document in bundle.documents.items():
        if test or not document.test_only:
            given.add(file, document.gives)
    edges: dict[str, set[str]] = {}
    reads: dict[str, set[str]] = {}

    def reach(file: str) -> None:
        edges[file] = set().union(*(definitions.meeting(path) for path in summaries[file].mentions))
        reads[file] = set().union(*(given.meeting(path) for path in summaries[file].mentions))

    packages: dict[Path, list[str]] = {}
    for file, summary in summaries.items():
        if (file in tests) == test:
            packages.setdefault(summary.package, []).append(file)
    found = {}
    for package, own in sorted(packages.items()):
        reached: set[str] = set()
        waiting = list(own)
        while waiting:
            file = waiting.pop()
            if file in reached:
                continue
            reached.add(file)
            if file not in edges:
                reach(file)
            waiting += edges[file] - reached
        data = set().union(*(reads[file] for file in reached))
        found[package] = _Members(tuple(sorted(own)), tuple(sorted(reached)), tuple(sorted(data)))
    return found


def _closure(package: Path, members: _Members, digests: Mapping[str, str], *, test: bool) -> Closure:
    listing = hashlib.sha256(f"{'test' if test else 'policy'} {'.'.join(package)}\n".encode())
    for file in (*members.modules, *members.data):
        listing.update(f"{digests[file]}  {file}\n".encode())
    return Closure(package, members.own, members.modules, members.data, listing.hexdigest(), test)
