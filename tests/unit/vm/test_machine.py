"""A machine's start, lines and end, with a program in QEMU's place that speaks as a guest would."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vagrant.vm import machine, trial
from vagrant.vm.errors import BootError, GuestError, LateError, ToolError, UsageError
from vagrant.vm.kernels import Kernel
from vagrant.vm.machine import Disk, Spec, arguments, running, wait_for_start

SPEC = Spec(Path("vmlinuz"), Path("initrd"))


def run_trial(folder: Path, limit: float = 60) -> tuple[trial.Outcome, str]:
    (folder / "kernel").mkdir(exist_ok=True)
    for name in ("vmlinuz", "initrd", "modules.img"):
        (folder / "kernel" / name).write_bytes(b"")
    (folder / "checkout/tests/kernel").mkdir(parents=True, exist_ok=True)
    subprocess.run(["git", "init", "-q", folder / "checkout"], check=True)
    heard: list[bytes] = []
    outcome = trial.run(
        Kernel("6.1.0-9-cloud-amd64", "6.1.27", folder / "kernel"), folder / "tree.img", folder / "checkout", "tcg",
        steps=["kernel"], tests=["tests/kernel"], limit=limit, say=lambda text: None, told=heard.append,
    )  # fmt: skip
    return outcome, b"".join(heard).decode()


def test_exit_code_output_and_findings_come_back_and_nothing_stays(guest: Callable[[str], Path]) -> None:
    folder = guest(
        "say(steps, 'started\\nready 6.1\\n')\n"
        "say(output, '3 passed\\n')\n"
        'say(findings, \'{"step": "kernel", "tests": 3}\\nno json\\n\')\n'
        "say(steps, 'exit 7\\n')\n"
    )
    outcome, heard = run_trial(folder)
    assert outcome.code == 7
    assert heard == "3 passed\n"
    assert outcome.findings == {"kernel": {"tests": 3}}
    assert list((folder / "tmp").iterdir()) == []


def test_a_boot_that_never_reaches_its_first_process_is_tried_again_and_nothing_else_is(
    guest: Callable[[str], Path],
) -> None:
    folder = guest(
        "boots = open(os.path.dirname(sys.argv[0]) + '/boots', 'a+')\n"
        "boots.write('x'); boots.flush(); boots.seek(0)\n"
        "if len(boots.read()) < 3: sys.exit(0)\n"
        "say(steps, 'started\\nready 6.1\\nexit 0\\n')\n"
    )
    outcome, _ = run_trial(folder)
    assert outcome.code == 0
    assert (folder / "bin/boots").read_text() == "xxx"


def test_a_machine_that_dies_at_work_is_a_result_and_not_tried_again(guest: Callable[[str], Path]) -> None:
    folder = guest(
        "open(os.path.dirname(sys.argv[0]) + '/boots', 'a').write('x')\nsay(steps, 'started\\nready 6.1\\n')\n"
    )
    with pytest.raises(LateError, match="died while it worked"):
        run_trial(folder)
    assert (folder / "bin/boots").read_text() == "x"


def test_a_machine_that_is_not_done_in_time_is_switched_off(guest: Callable[[str], Path]) -> None:
    folder = guest(
        "open(os.path.dirname(sys.argv[0]) + '/pid', 'w').write(str(os.getpid()))\n"
        "say(steps, 'started\\nready 6.1\\n')\n"
        "time.sleep(600)\n"
    )
    with pytest.raises(LateError, match="not done within"):
        run_trial(folder, limit=1)
    assert not Path(f"/proc/{(folder / 'bin/pid').read_text()}").exists()


def test_a_guest_that_gives_up_says_why_and_is_not_tried_again(guest: Callable[[str], Path]) -> None:
    folder = guest(
        "open(os.path.dirname(sys.argv[0]) + '/boots', 'a').write('x')\n"
        "say(steps, 'started\\nfailed the kernel has no overlay file system\\n')\n"
    )
    with pytest.raises(GuestError, match="no overlay file system"):
        run_trial(folder)
    assert (folder / "bin/boots").read_text() == "x"


def test_what_qemu_refuses_is_told_in_its_words(guest: Callable[[str], Path]) -> None:
    guest("print('qemu: no such cpu', file=sys.stderr); sys.exit(1)")
    with running(SPEC) as one, pytest.raises(ToolError) as caught:
        wait_for_start(one, lambda _: None)
    assert "no such cpu" in caught.value.hint


def test_the_console_ends_up_in_the_hint(guest: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "BOOT_SECONDS", 1)
    guest(
        "console = re.search(r'file:(\\S+)', words)[1]\n"
        "open(console, 'w').write('Kernel panic - not syncing\\n')\n"
        "time.sleep(600)\n"
    )
    with running(SPEC) as one, pytest.raises(BootError) as caught:
        wait_for_start(one, lambda _: None)
    assert "Kernel panic" in caught.value.hint


def test_without_qemu_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vagrant.vm.place.search_path", lambda: "/nowhere")
    with pytest.raises(ToolError) as caught, running(SPEC):
        raise AssertionError("it started")
    assert "qemu-system-x86" in caught.value.hint


def test_disks_are_read_only_unless_they_are_to_be_written() -> None:
    spec = Spec(Path("k"), Path("i"), (Disk(Path("a.img")), Disk(Path("b.img"), read_only=False)))
    words = " ".join(arguments(spec, Path("console"), [5, 6, 7], 8))
    assert re.search(r"readonly=on,file=a\.img ", words)
    assert re.search(r"readonly=off,file=b\.img,cache=directsync", words)
    assert "-no-reboot" in words


@pytest.mark.parametrize("test", ["tests/kernel/test_gone.py", "/etc/passwd", "../x", "--collect-only"])
def test_a_test_that_is_not_in_the_checkout_is_refused_before_the_boot(test: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no test"):
        trial.check_tests([test], tmp_path)


def test_a_step_that_there_is_not_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        trial.check_steps(["kernel", "dance"])
    assert "survey" in caught.value.hint


def test_lines_that_come_in_pieces_are_put_together(guest: Callable[[str], Path]) -> None:
    guest(
        "say(steps, 'star'); time.sleep(0.05); say(steps, 'ted\\nrea'); time.sleep(0.05); say(steps, 'dy\\n')\n"
        "time.sleep(60)\n"
    )
    with running(SPEC) as one:
        assert one.watch(time.monotonic() + 30, lambda _: None, lambda had: len(had.steps) == 2)
        assert one.steps == ["started", "ready"]
