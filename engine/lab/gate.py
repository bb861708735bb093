"""The engine under trial: started, asked and ended as a user would do it."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.abi.numbers import Counter
from engine.kernel.maps import Map, PerCpuMap
from engine.kernel.pins import Pins
from engine.lab.errors import LabError
from engine.lab.log import Entry, entries
from engine.lab.place import Ended, Place, environment
from engine.lab.topology import DEVICE
from engine.lab.waiting import until

COMMAND = (sys.executable, "-m", "engine.cli.main")
START_SECONDS = 600
STOP_SECONDS = 60
_TAIL_LINES = 6


class Gate:
    """One engine after the other over the same state directory."""

    def __init__(
        self, place: Place, tools: Place, guarded: Path, policy: Path, state_dir: Path, work: Path,
        *, interfaces: Sequence[str] = (DEVICE,), config: Path | None = None,
    ) -> None:  # fmt: skip
        self._place = place
        self._tools = tools
        self._words = ["--policy", str(policy), "--cgroup", str(guarded), "--interface", *interfaces]
        self._words += [] if config is None else ["--config", str(config)]
        self._state_dir = state_dir
        self._stderr = work / "engine.err"
        self._process: subprocess.Popen[bytes] | None = None
        self.pins = Pins.of(state_dir)
        self.first_line = ""
        self._counters: PerCpuMap | None = None

    def start(self, mode: str = "enforce") -> str:
        """Start an engine and return its one line, once everything is attached."""
        words = [*COMMAND, "run", *self._words, "--state-dir", str(self._state_dir), "--mode", mode]
        with self._stderr.open("ab") as stderr:
            self._process = subprocess.Popen(
                self._place.command(words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr,
                env=environment(), start_new_session=True,
            )  # fmt: skip
        stdout = self._process.stdout
        assert stdout is not None  # noqa: S101 - a pipe was asked for
        readable, _, _ = select.select([stdout], [], [], START_SECONDS)
        self.first_line = stdout.readline().decode(errors="replace").strip() if readable else ""
        if not self.first_line:
            how = "ended" if readable else f"said nothing within {START_SECONDS:g} s"
            self.kill()
            raise LabError(f"The engine {how}; its last words:\n{self.last_words()}")
        self._forget_counters()
        self._counters = PerCpuMap(self.pins.maps / "counters")
        return self.first_line

    @property
    def lives(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> int:
        """End the engine in order; return its exit code."""
        if self._process is None:
            raise LabError("There is no engine to stop")
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise LabError(f"The engine did not end within {STOP_SECONDS:g} s of SIGTERM") from None

    def kill(self) -> None:
        """End the engine with SIGKILL, as the kernel does when memory is short."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        if self.lives:
            with suppress(LabError):
                self.stop()
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
        self._forget_counters()

    def _forget_counters(self) -> None:
        if self._counters is not None:
            self._counters.close()
            self._counters = None

    def last_words(self) -> str:
        lines = self._stderr.read_text(errors="replace").splitlines() if self._stderr.exists() else []
        return "\n".join(f"  {line}" for line in lines[-_TAIL_LINES:]) or "  (none)"

    # ---- what it did

    def counters(self) -> dict[Counter, int]:
        """The kernel's own counters, read from the pinned map: they answer with no engine too."""
        if self._counters is None:
            raise LabError("There is no gate whose counters could be read")
        return dict(zip(Counter, self._counters.sums(), strict=True))

    def entries(self) -> Iterator[Entry]:
        """Every whole line of the audit log."""
        return entries(self._state_dir)

    def generation(self) -> int:
        """The number of the policy that the kernel's programs go by at this moment."""
        number = Map(self.pins.maps / "generation")
        try:
            return int.from_bytes(number.get(bytes(4)) or b"", "little")
        finally:
            number.close()

    def sallyport(self, *words: str, seconds: float = 120.0) -> Ended:
        """Run a command for this state directory, outside of the lab's namespaces, as an administrator would."""
        return self._tools.run([*COMMAND, *words, "--state-dir", str(self._state_dir)], seconds=seconds)

    def status(self) -> dict[str, Any]:
        done = self.sallyport("status", "--json")
        try:
            answer: dict[str, Any] = json.loads(done.out)
        except ValueError:
            raise LabError(f"sallyport status --json does not answer: {done.last_words}") from None
        return answer


class Since:
    """How far the counters have moved since this was made."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._before = gate.counters()

    def grown(self, *counters: Counter) -> int:
        now = self._gate.counters()
        return sum(now[each] - self._before[each] for each in counters)

    def grows(self, *counters: Counter, by: int = 1, seconds: float = 8.0) -> int:
        """Wait until the sum has grown by at least `by`; return by how much it has."""
        until(lambda: self.grown(*counters) >= by, seconds)
        return self.grown(*counters)
