"""Two machines on a wire: what a story says reaches the right one, and the operator has the power."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vagrant.vm import pair
from vagrant.vm.errors import UsageError
from vagrant.vm.kernels import Kernel
from vagrant.vm.pair import Pair
from vagrant.vm.stories import Answer, Step

# Tells its name and how often it was started with every command, and obeys the monitor.
GUEST = r"""
name = re.search(r"(\w+)\.initrd", words)[1]
with open(os.path.dirname(sys.argv[0]) + "/" + name, "a+") as file:
    file.write("x"); file.flush(); file.seek(0)
    starts = len(file.read())
say(steps, "started\nready 6.1\n")

def obey():
    while True:
        order = os.read(monitor, 100)
        if b"quit" in order:
            os._exit(0)
        if b"system_reset" in order:
            say(steps, "started\nready 6.1\n")

threading.Thread(target=obey, daemon=True).start()
for line in os.fdopen(os.dup(steps), "rb"):
    command = base64.b64decode(line).decode()
    if command == "systemctl reboot":
        say(steps, "started\nready 6.1\n")
    else:
        said = base64.b64encode(f"{name}, start {starts}: {command}\n".encode()).decode()
        say(steps, f"answer 3 {said}\n")
"""


@pytest.fixture
def both(guest: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    folder = guest(GUEST)
    monkeypatch.setattr(pair, "ext4", lambda content, image, megabytes: image.touch())
    for name in ("vmlinuz", "initrd", "modules.img", "tree.img"):
        (folder / name).touch()
    (folder / "checkout").mkdir()
    subprocess.run(["git", "init", "-q", folder / "checkout"], check=True)
    kernel = Kernel("6.1.0-9-cloud-amd64", "6.1.27", folder)
    with Pair(kernel, folder / "tree.img", folder / "checkout", "tcg") as machines:
        yield machines
    assert list((folder / "tmp").iterdir()) == []


def test_a_command_reaches_its_machine_and_the_answer_comes_back_whole(both: Pair) -> None:
    assert both.carry_out(Step("peer", "echo a | b 'c'", 1)) == Answer(3, "peer, start 1: echo a | b 'c'\n")
    assert both.carry_out(Step("enforcer", "true", 2)).said == "enforcer, start 1: true\n"


def test_after_a_power_cut_the_machine_is_another_start_and_the_other_one_is_not(both: Pair) -> None:
    both.carry_out(Step("operator", "cut enforcer", 1))
    both.carry_out(Step("operator", "start enforcer", 2))
    assert both.carry_out(Step("enforcer", "true", 3)).said == "enforcer, start 2: true\n"
    assert both.carry_out(Step("peer", "true", 4)).said == "peer, start 1: true\n"


@pytest.mark.parametrize("verb", ["reset", "reboot"])
def test_a_machine_that_starts_anew_is_waited_for(both: Pair, verb: str) -> None:
    both.carry_out(Step("operator", f"{verb} enforcer", 1))
    assert both.carry_out(Step("enforcer", "true", 2)).code == 3


@pytest.mark.parametrize("words", ["cut", "cut nobody", "burn enforcer"])
def test_what_the_operator_cannot_do_is_answered_with_what_it_can(both: Pair, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        both.carry_out(Step("operator", words, 1))
    assert "reboot, reset, cut or start" in caught.value.hint
