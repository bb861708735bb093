"""scripts/machine: what CI runs on one more kernel. It fails when the machine does, and nothing makes it hang."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TOOLS = ("bash", "env", "timeout", "dirname", "mkdir", "tee", "grep", "sleep", "cat", "true")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A checkout with the scripts in it, and a PATH with a few programs, QEMU among them, and no root to ask for."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    put(tmp_path / "scripts/as-root", 'exec "$@"')
    (tmp_path / "bin").mkdir()
    for name in TOOLS:
        found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        assert found is not None
        (tmp_path / "bin" / name).symlink_to(found)
    for name in ("qemu-system-x86_64", "mke2fs", "depmod", "git", "apt-cache"):
        put(tmp_path / "bin" / name, ":")
    put(tmp_path / "bin/uname", "echo x86_64")
    put(tmp_path / "bin/python3", 'echo "$@" >ran')
    return tmp_path


def put(program: Path, body: str) -> None:
    program.unlink(missing_ok=True)
    program.write_text(f"#!/bin/bash\n{body}\n")
    program.chmod(0o755)


def run(place: Path, *tests: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(place / "scripts/machine"), *tests], capture_output=True, text=True, check=False,
        env={"PATH": str(place / "bin"), **settings},
    )  # fmt: skip


def test_it_runs_the_verdicts_on_linux_6_1_or_what_it_is_told(place: Path) -> None:
    assert run(place).returncode == 0
    words = (place / "ran").read_text()
    assert "--system here --kernel 6.1 " in words
    assert words.endswith("--step kernel tests/kernel/test_verdicts.py\n")
    run(place, "tests/kernel/test_hold.py", "tests/kernel/test_names.py", KERNEL="6.12")
    words = (place / "ran").read_text()
    assert "--kernel 6.12 " in words
    assert words.endswith("--step kernel tests/kernel/test_hold.py tests/kernel/test_names.py\n")


def test_where_the_kernels_do_not_run_nothing_is_installed(place: Path) -> None:
    put(place / "bin/uname", "echo aarch64")
    put(place / "bin/apt-get", "echo asked >installed")
    (place / "bin/qemu-system-x86_64").unlink()
    done = run(place)
    assert done.returncode == 10
    assert "this machine is aarch64." in done.stderr
    assert not (place / "ran").exists()
    assert not (place / "installed").exists()


def test_it_ends_as_the_machine_did(place: Path) -> None:
    put(place / "bin/python3", "exit 22")
    assert run(place).returncode == 22


def test_what_does_not_end_is_ended(place: Path) -> None:
    script = place / "scripts/machine"
    script.write_text(script.read_text().replace("LIMIT_SECONDS=900", "LIMIT_SECONDS=1"))
    put(place / "bin/python3", 'echo "$$" >pid; exec sleep 600')
    assert run(place).returncode == 124
    assert not Path(f"/proc/{(place / 'pid').read_text().strip()}").exists()


def test_an_emulator_that_is_missing_is_installed(place: Path) -> None:
    (place / "bin/qemu-system-x86_64").unlink()
    put(place / "bin/apt-get", 'echo "$@" >>installed')
    assert run(place).returncode == 0
    assert "install --no-install-recommends qemu-system-x86" in (place / "installed").read_text()
    assert (place / "ran").exists()


def test_an_archive_that_does_not_answer_ends_it_with_a_sentence(place: Path) -> None:
    (place / "bin/qemu-system-x86_64").unlink()
    put(place / "bin/apt-get", "echo 'Err:1 Temporary failure resolving deb.debian.org'; exit 100")
    done = run(place)
    assert done.returncode == 12
    assert "The package archive cannot be reached." in done.stderr
    assert not (place / "ran").exists()
