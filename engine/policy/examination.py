"""What the engine asks the checker, and what it is told: apart, so that the engine does not load the parser."""

from __future__ import annotations

import msgspec

from engine.model.decision import Verdict
from engine.policy.bundle import Bundle
from engine.policy.findings import Finding
from engine.policy.frames import Evaluate, Evaluated, Load, Queried, Query, Ready
from engine.policy.rule import Rule
from engine.policy.sources import SourceRules
from engine.policy.summary import Path, Summary


class RegoTest(msgspec.Struct, frozen=True, array_like=True):
    """A test rule: its name with the package, and where it stands."""

    name: str
    file: str
    line: int


class Summarise(msgspec.Struct, tag="summarise", array_like=True):
    """Modules and tests as (file, text)."""

    modules: list[tuple[str, str]]


class Summaries(msgspec.Struct, tag="summaries", array_like=True):
    """One summary for each module, and which build of the interpreter says so."""

    summaries: list[Summary]
    build: str


class Examine(msgspec.Struct, tag="examine", array_like=True):
    """A whole candidate for the static check: modules and tests as (file, text), data as JSON, and which file gave
    which data path."""

    modules: list[tuple[str, str]]
    tests: list[tuple[str, str]]
    data: bytes
    data_files: list[tuple[list[str], str]]


class Report(msgspec.Struct, tag="report", array_like=True):
    """What came of it. With an error among `findings` the rest is what could be made out."""

    findings: list[Finding]
    rules: list[Rule]
    default: Verdict | None
    tests: list[RegoTest]


class Given(msgspec.Struct, array_like=True):
    """A package with all that it can reach: to be checked, and its rule to be tried on generated inputs. `tests`: the
    package's own test modules, if it is one of tests."""

    package: Path
    modules: list[tuple[str, str]]
    tests: list[tuple[str, str]]
    data: bytes


class Try(msgspec.Struct, tag="try", array_like=True):
    """Packages of a candidate."""

    given: list[Given]


class Found(msgspec.Struct, frozen=True, array_like=True):
    """What came of one package. `covered`: the lines of each file that its inputs reached; `default`,
    `inbound` and `sources` come from the package sallyport alone."""

    findings: tuple[Finding, ...] = ()
    rules: tuple[Rule, ...] = ()
    default: Verdict | None = None
    sources: SourceRules = SourceRules()
    tests: tuple[RegoTest, ...] = ()
    covered: dict[str, tuple[int, ...]] = {}
    inbound: Verdict | None = None

    @property
    def refused(self) -> bool:
        return any(not finding.warning for finding in self.findings)


class Tried(msgspec.Struct, tag="tried", array_like=True):
    """One result for each package."""

    found: list[Found]


Asked = Summarise | Examine | Try | Load | Query | Evaluate
Told = Summaries | Report | Tried | Ready | Queried | Evaluated


def question(bundle: Bundle) -> Examine:
    """Return the request for the static check of a whole bundle."""
    return Examine(
        [(module.file, module.text) for module in bundle.modules],
        [(module.file, module.text) for module in bundle.tests],
        msgspec.json.encode(bundle.data),
        [(list(path), file) for path, file in bundle.data_files.items()],
    )
