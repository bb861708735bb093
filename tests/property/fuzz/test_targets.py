"""The fuzz targets on what is known: every seed passes, and so does every input that broke a parser once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.blind import fuzz
from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS

CRASHES = Path(__file__).parents[2] / "fuzz/crashes"
KNOWN = [(path.parent.name, path) for path in sorted(CRASHES.glob("*/*")) if path.parent.name in TARGETS]


@pytest.mark.parametrize("target", TARGETS)
def test_every_seed_passes(target: str) -> None:
    inputs = list(SEEDS[target]())
    assert inputs
    for data in (*inputs, b""):
        TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
def test_the_inputs_that_broke_it_once_pass(target: str) -> None:
    for name, path in KNOWN:
        if name == target:
            TARGETS[name](path.read_bytes())


def test_every_target_has_seeds_and_every_crash_a_target() -> None:
    assert set(SEEDS) == {*TARGETS, "c_packet", "c_hello"}
    assert {path.name for path in CRASHES.glob("*")} <= set(SEEDS)


def test_without_coverage_a_fault_is_found_and_its_input_kept(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/seed").write_bytes(b"\0\0\0")

    def picky(data: bytes) -> None:
        assert len(data) < 6 or data[0] == 0

    options = ["-runs=20000", "-seed=7", f"-artifact_prefix={tmp_path}/", str(tmp_path / "corpus")]
    with pytest.raises(AssertionError):
        fuzz(picky, options)
    (kept,) = tmp_path.glob("crash-*")
    with pytest.raises(AssertionError):
        picky(kept.read_bytes())


def test_without_coverage_the_runs_are_bounded_and_repeat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "seed").write_bytes(b"seed")
    seen: list[list[bytes]] = [[], []]
    for inputs in seen:
        fuzz(inputs.append, ["-runs=300", "-seed=7", str(tmp_path)])
    assert seen[0] == seen[1]
    assert len(seen[0]) == 300
    assert len(set(seen[0])) > 200
    assert "number_of_executed_units: 300" in capsys.readouterr().err
