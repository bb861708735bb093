"""A run of the tests that is green ran every test that was asked for; the commands around it pass failures on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def run_pytest(folder: Path, *words: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run pytest on a folder of test files under this project's conftest."""
    shutil.copy(ROOT / "tests/conftest.py", folder / "tests/conftest.py")
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PATH": path or os.environ["PATH"]}
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, f"--rootdir={folder}", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, "--import-mode=importlib", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tests/unit").mkdir(parents=True)
    return tmp_path


SKIPS = """
import pytest

def test_body(): pytest.skip("no kernel: body")

@pytest.mark.skip(reason="no kernel: mark")
def test_mark(): pass

@pytest.fixture
def kernel(): pytest.skip("no kernel: fixture")

def test_fixture(kernel): pass

@pytest.mark.xfail(reason="no kernel: expected")
def test_expected(): assert 0

def test_good(): pass
"""


def test_every_kind_of_skip_is_a_failure_with_its_reason(folder: Path) -> None:
    (folder / "tests/unit/test_sample.py").write_text(SKIPS, encoding="utf-8")
    assert "1 passed, 3 skipped, 1 xfailed" in run_pytest(folder, "tests/unit").stdout
    done = run_pytest(folder, "--strict-tiers", "tests/unit")
    assert done.returncode == 1
    assert "2 failed, 1 passed, 2 errors" in done.stdout
    for reason in ("body", "mark", "fixture", "expected"):
        assert re.search(f"skipped, which --strict-tiers forbids: (Skipped: )?no kernel: {reason}", done.stdout)


def test_a_whole_file_that_skips_itself_is_a_failure_with_its_reason(folder: Path) -> None:
    (folder / "tests/unit/test_sample.py").write_text(
        'import pytest\npytest.skip("no kernel here", allow_module_level=True)\n', encoding="utf-8"
    )
    done = run_pytest(folder, "--strict-tiers", "tests/unit")
    assert done.returncode == 2
    assert "no kernel here" in done.stdout


def test_without_skips_the_strict_run_is_green(folder: Path) -> None:
    (folder / "tests/unit/test_sample.py").write_text("def test_it():\n    pass\n", encoding="utf-8")
    done = run_pytest(folder, "--strict-tiers", "tests/unit")
    assert done.returncode == 0
    assert "1 passed" in done.stdout


def test_a_folder_that_was_asked_for_may_not_be_empty(folder: Path) -> None:
    (folder / "tests/unit/test_sample.py").write_text("def test_it():\n    pass\n", encoding="utf-8")
    (folder / "tests/kernel").mkdir()
    done = run_pytest(folder, "--strict-tiers", "tests/unit", "tests/kernel")
    assert done.returncode == 4
    assert "tests/kernel has no test" in done.stderr
    assert "tests/absent" in run_pytest(folder, "--strict-tiers", "tests/unit", "tests/absent").stderr


def test_a_tier_whose_needs_are_missing_fails_and_names_them(folder: Path) -> None:
    (folder / "tests/host_c").mkdir()
    (folder / "tests/host_c/test_sample.py").write_text("def test_it():\n    pass\n", encoding="utf-8")
    done = run_pytest(folder, "tests/host_c", path=str(folder))
    # cc may stand in /usr/sbin on no machine: the two folders that the search adds.
    assert done.returncode == 1
    assert "the tier host_c needs: cc" in done.stdout
    assert run_pytest(folder, "tests/host_c").returncode == 0


def test_tests_of_a_marked_tier_have_its_marker(folder: Path) -> None:
    (folder / "tests/e2e").mkdir()
    (folder / "tests/e2e/test_sample.py").write_text("def test_it():\n    pass\n", encoding="utf-8")
    done = run_pytest(folder, "--collect-only", "-m", "e2e", "tests")
    assert "1 test collected" in done.stdout


def program(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    return subprocess.run(
        words,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_every_step_runs_and_one_failure_fails_the_whole(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    program(tmp_path / ".venv/bin/ruff", 'echo "ruff $1"; [ "$1" = format ]')
    program(tmp_path / ".venv/bin/mypy", "echo mypy")
    done = run(tmp_path, "scripts/test", "ruff", "format", "mypy")
    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if line and not line.startswith("==")] == [
        "ruff check",
        "ruff format",
        "mypy",
        "test: failed: ruff",
    ]
    assert run(tmp_path, "scripts/test", "format", "mypy").returncode == 0
    assert run(tmp_path, "scripts/test", "nonsense").returncode == 2


def test_as_root_runs_the_command_as_it_is_and_passes_its_exit_code_on(tmp_path: Path) -> None:
    program(tmp_path / "bin/id", "echo 0")
    done = run(tmp_path, str(ROOT / "scripts/as-root"), "sh", "-c", 'echo "$1"; exit 7', "sh", "two words")
    assert (done.returncode, done.stdout) == (7, "two words\n")


def test_as_root_goes_through_sudo_or_says_that_it_cannot(tmp_path: Path) -> None:
    program(tmp_path / "bin/id", "echo 1000")
    program(tmp_path / "bin/sudo", '[ "$1" = -n ] || echo "sudo $*"')
    done = run(tmp_path, str(ROOT / "scripts/as-root"), "ip", "link")
    assert (done.returncode, done.stdout) == (0, "sudo -- ip link\n")
    program(tmp_path / "bin/sudo", "exit 1")
    done = run(tmp_path, str(ROOT / "scripts/as-root"), "ip", "link")
    assert done.returncode == 11
    assert "needs root" in done.stderr


def test_help_is_the_default_and_lists_every_command() -> None:
    # -r and --no-print-directory: nothing of the make that may run these tests.
    environment = {key: value for key, value in os.environ.items() if key not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    done = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    listed = {line.split()[1] for line in done.stdout.splitlines()}
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert phony
    assert listed == set(phony[1].split())
