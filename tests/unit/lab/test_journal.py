"""The journal: a run that lives is left alone, one that died is found, whatever it died of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.lab import journal
from engine.lab.errors import LabError
from engine.lab.journal import Journal, Plan


@pytest.fixture(autouse=True)
def journals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "journals"
    monkeypatch.setattr(journal, "JOURNALS", folder)
    return folder


def plan() -> Plan:
    return Plan.fresh(None, Path("/cgroups"), mounts_bpffs=True)


def test_a_run_that_lives_is_not_abandoned(journals: Path) -> None:
    Journal.begin(plan())
    assert list(Journal.abandoned()) == []


def test_a_run_that_was_killed_is_found_with_its_whole_plan(journals: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from engine.lab import journal\n"
        "journal.JOURNALS = Path(sys.argv[1])\n"
        "plan = journal.Plan.fresh(None, Path('/cgroups'), mounts_bpffs=True)\n"
        "kept = journal.Journal.begin(plan); print(plan.run, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[3]
    killed = subprocess.run(
        [sys.executable, "-c", code, str(journals)], capture_output=True, text=True, check=False, cwd=root
    )
    assert killed.returncode == -9, killed.stderr
    (found,) = Journal.abandoned()
    assert found.plan == Plan(killed.stdout.strip(), found.plan.state_dir, "/cgroups", mounts_bpffs=True)


def test_a_record_that_was_not_written_to_its_end_stands_for_nothing_made(journals: Path) -> None:
    journals.mkdir()
    (journals / "1234abcd.json").write_text('{"run": "1234')
    (found,) = Journal.abandoned()
    assert found.plan is None
    found.close()
    assert not journals.exists()


def test_the_last_journal_to_close_takes_the_folder_with_it(journals: Path) -> None:
    first, second = Journal.begin(plan()), Journal.begin(plan())
    first.close()
    assert [path.name for path in journals.iterdir()] == [second.path.name]
    second.close()
    assert not journals.exists()


def test_a_run_that_could_not_be_taken_away_whole_is_tried_again(journals: Path) -> None:
    Journal.begin(plan()).close(["a group is in use"])
    (found,) = Journal.abandoned()
    found.close()
    assert not journals.exists()


def test_an_abandoned_run_is_cleared_up_by_one_only(journals: Path) -> None:
    (journals / "x").parent.mkdir()
    (journals / "1234abcd.json").write_text("{}")
    (mine,) = Journal.abandoned()
    assert list(Journal.abandoned()) == []
    mine.close()


def test_a_folder_that_cannot_be_made_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(journal, "JOURNALS", tmp_path / "file" / "journals")
    with pytest.raises(LabError, match="journal cannot be written"):
        Journal.begin(plan())


def test_everything_a_run_makes_bears_its_name() -> None:
    one = plan()
    assert all(one.run in str(made) for made in (one.work, one.cgroup, one.state))


def test_a_state_directory_that_was_given_is_not_in_the_folder_that_goes(tmp_path: Path) -> None:
    kept = Plan.fresh(tmp_path / "kept", Path("/cgroups"), mounts_bpffs=False)
    assert kept.state == tmp_path / "kept"
    assert kept.work not in kept.state.parents


def test_many_runs_at_once_neither_lose_nor_seize_a_record(journals: Path) -> None:
    # Each begins, looks for dead runs and ends, over and over: none is dead, so none may be found.
    code = (
        "import sys; from pathlib import Path; from engine.lab import journal\n"
        "journal.JOURNALS = Path(sys.argv[1])\n"
        "for _ in range(100):\n"
        "    plan = journal.Plan.fresh(None, Path('/cgroups'), mounts_bpffs=True)\n"
        "    assert journal.Journal.abandoned() == []\n"
        "    kept = journal.Journal.begin(plan); assert kept.path.exists(); kept.close()"
    )
    words = [sys.executable, "-c", code, str(journals)]
    runs = [subprocess.Popen(words, cwd=Path(__file__).parents[3], stderr=subprocess.PIPE) for _ in range(4)]
    assert [(run.communicate()[1], run.returncode) for run in runs] == [(b"", 0)] * 4
    assert not journals.exists()
