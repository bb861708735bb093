"""Fuzz every target, or those named: `python -m tests.fuzz smoke|long|replay [--duration SECONDS] [TARGET...]`.

smoke: a bounded number of runs from the seeds, the same ones each time. long: for a duration, shared among the targets,
from the seeds and the corpus of the runs before (build/fuzz/corpus). replay: only what is in tests/fuzz/crashes and the
seeds. The exit code is 1 when a target fell; the input stands in tests/fuzz/crashes/TARGET.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import seeds

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build/fuzz"
CRASHES = HERE / "crashes"
SANITIZE = ("-fsanitize=fuzzer,address,undefined", "-fno-sanitize=alignment", "-fno-sanitize-recover=undefined")
"""Without alignment: the kernel's machines read eight bytes anywhere, and the parsers rely on it."""
C_TARGETS = {"c_packet": "packet.dict", "c_hello": "tls.dict"}
SMOKE_RUNS = {"c": 20_000, "python": 2_000}
LONGEST_INPUT = 4_600
"""More than the window of a hello, and small enough for many runs."""
SECONDS_A_RUN = 10
MEGABYTES = 1_024


@dataclass
class Done:
    target: str
    runs: int
    seconds: float
    edges: int
    features: int
    fell: bool

    def row(self) -> str:
        speed = self.runs / self.seconds if self.seconds else 0
        state = "FELL" if self.fell else "ok"
        return (
            f"{self.target:10} {self.runs:>12,} {self.seconds:>8.0f} s {speed:>9,.0f}/s {self.edges:>6,} edges "
            f"{self.features:>7,} features  {state}"
        )


def is_c(target: str) -> bool:
    return target in C_TARGETS


def compiled(target: str) -> Path:
    """Build a C target against the kernel's headers."""
    program = BUILD / "bin" / target
    program.parent.mkdir(parents=True, exist_ok=True)
    source = HERE / "c" / f"{target.removeprefix('c_')}.c"
    words = ["clang", "-std=gnu11", "-O1", "-g", "-Wall", "-Werror", "-Wno-unknown-pragmas"]
    subprocess.run([*words, *SANITIZE, f"-I{ROOT / 'bpf/include'}", "-o", str(program), str(source)], check=True)
    return program


def command(targets: list[str], folder: Path, options: list[str]) -> list[str]:
    """`{}` stands for the target: one process imports under instrumentation for all Python targets."""
    shared = [
        f"-max_len={LONGEST_INPUT}", f"-timeout={SECONDS_A_RUN}", f"-rss_limit_mb={MEGABYTES}", "-print_final_stats=1",
        # What a busy machine held up is no finding; what takes too long is ended by the timeout.
        f"-report_slow_units={100 * SECONDS_A_RUN}",
        f"-artifact_prefix={CRASHES}/{{}}/", *options, f"{folder}/{{}}", f"{CRASHES}/{{}}",
    ]  # fmt: skip
    if is_c(targets[0]):
        (target,) = targets
        dictionary = f"-dict={HERE / 'c' / C_TARGETS[target]}"
        return [str(compiled(target)), dictionary, *(word.replace("{}", target) for word in shared)]
    return [sys.executable, "-m", "tests.fuzz.run", ",".join(targets), *shared]


def fuzz(targets: list[str], folder: Path, options: list[str]) -> Iterator[Done]:
    """Run targets one after the other; what each says goes to build/fuzz/TARGET.log."""
    for target in targets:
        seeds.write(target, folder / target)
        (CRASHES / target).mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command(targets, folder, options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT, env=environment,
        text=True, errors="replace",
    ) as running:  # fmt: skip
        for target in targets:
            yield _follow(target, running)


def _follow(target: str, running: subprocess.Popen[str]) -> Done:
    """Read what one target says, to its end."""
    began, text, code = time.monotonic(), [], ""
    assert running.stdout is not None
    with (BUILD / f"{target}.log").open("w") as log:
        for line in running.stdout:
            log.write(line)
            text.append(line)
            del text[:-200]
            if line == f"== {target}\n":
                began = time.monotonic()  # importing is over
            elif line.startswith(f"== {target} ended"):
                code = line.split()[-1]
                break
    fell = (code or str(running.wait())) != "0"
    whole = "".join(text)
    runs = [int(number) for number in re.findall(r"number_of_executed_units:\s+(\d+)", whole)]
    coverage = re.findall(r"cov: (\d+) ft: (\d+)", whole)
    edges, features = map(int, coverage[-1]) if coverage else (0, 0)
    if fell:
        print(f"{target} fell; the input is in {CRASHES / target}:", file=sys.stderr)
        print("".join(text[-40:]), file=sys.stderr)
    return Done(target, runs[-1] if runs else 0, time.monotonic() - began, edges, features, fell)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("smoke", "long", "replay"))
    parser.add_argument("--duration", type=int, default=3600, help="seconds for all targets together (long)")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(seeds.SEEDS)}")
    given = parser.parse_intermixed_args()
    if unknown := set(given.targets) - set(seeds.SEEDS):
        parser.error(f"there is no target {', '.join(sorted(unknown))}")
    targets = given.targets or list(seeds.SEEDS)
    BUILD.mkdir(parents=True, exist_ok=True)
    kept = BUILD / "corpus" if given.what == "long" else None
    fell = False
    with tempfile.TemporaryDirectory(prefix="sallyport-fuzz-") as fresh:
        for group in [[target] for target in targets if is_c(target)] + [[one for one in targets if not is_c(one)]]:
            options = {
                "smoke": [f"-runs={SMOKE_RUNS['c' if group and is_c(group[0]) else 'python']}", "-seed=1"],
                "long": [f"-max_total_time={max(1, given.duration // len(targets))}"],
                "replay": ["-runs=0"],
            }[given.what]
            for done in fuzz(group, kept or Path(fresh), options) if group else ():
                print(done.row(), flush=True)
                fell = fell or done.fell
    return int(fell)


if __name__ == "__main__":
    sys.exit(main())
