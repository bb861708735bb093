"""A story's step as a program of this machine: in a namespace, or over Vagrant's ssh."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from vagrant.vm.errors import LateError
from vagrant.vm.stories import Answer, Step

COMMAND_SECONDS = 1200
"""A first start compiles the kernel programs: a minute on an idle emulated machine."""


def ask(step: Step, words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Answer:
    """Run the words, which carry the step out, in the folder. Raises LateError when that does not end."""
    # Into a file and not a pipe: what the command leaves in the background would keep a pipe open.
    with tempfile.TemporaryFile() as said:
        try:
            done = subprocess.run(
                words, check=False, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, cwd=folder,
                timeout=COMMAND_SECONDS, env=environment,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise late(step) from error
        said.seek(0)
        return Answer(done.returncode, said.read().decode(errors="replace").replace("\r\n", "\n"))


def late(step: Step, more: str = "") -> LateError:
    """What is said of a step without an answer."""
    return LateError(
        f'{step.actor} did not answer to "{step.command}" within {COMMAND_SECONDS} seconds.',
        hint=more or "See what hangs there: the story's commands can be typed by hand.",
    )
