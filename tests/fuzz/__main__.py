"""Fuzz every target, or those named: `python -m tests.fuzz smoke|long|replay [--duration SECONDS] [TARGET...]`.

smoke: a bounded number of runs from the seeds, the same ones each time. long: for a duration, shared among the targets,
from the seeds and the corpus of the runs before (build/fuzz/corpus). replay: only what is in tests/fuzz/crashes and the
seeds. The exit code is 1 when a target fell; the input stands in tests/fuzz/crashes/TARGET.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
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


def command(target: str, corpus: Path, options: list[str]) -> list[str]:
    crashes = CRASHES / target
    crashes.mkdir(parents=True, exist_ok=True)
    shared = [
        f"-max_len={LONGEST_INPUT}", f"-timeout={SECONDS_A_RUN}", f"-rss_limit_mb={MEGABYTES}", "-print_final_stats=1",
        f"-artifact_prefix={crashes}/", *options, str(corpus), str(crashes),
    ]  # fmt: skip
    if is_c(target):
        return [str(compiled(target)), f"-dict={HERE / 'c' / C_TARGETS[target]}", *shared]
    return [sys.executable, "-m", "tests.fuzz.run", target, *shared]


def fuzz(target: str, corpus: Path, options: list[str]) -> Done:
    """Run one target to its end; what it says goes to build/fuzz/TARGET.log."""
    seeds.write(target, corpus)
    log = BUILD / f"{target}.log"
    began = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ASAN_OPTIONS": "detect_leaks=1"}
    with log.open("w") as said:
        done = subprocess.run(
            command(target, corpus, options), stdout=said, stderr=said, cwd=ROOT, env=environment, check=False
        )
    text = log.read_text(errors="replace")
    found = [int(number) for number in re.findall(r"number_of_executed_units:\s+(\d+)", text)]
    coverage = re.findall(r"cov: (\d+) ft: (\d+)", text)
    edges, features = map(int, coverage[-1]) if coverage else (0, 0)
    if done.returncode:
        print(f"{target}: fell; {log} has it, and the input is in {CRASHES / target}:", file=sys.stderr)
        print("\n".join(text.splitlines()[-40:]), file=sys.stderr)
    return Done(target, found[-1] if found else 0, time.monotonic() - began, edges, features, done.returncode != 0)


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
    fell = False
    for target in targets:
        runs = SMOKE_RUNS["c" if is_c(target) else "python"]
        options = {
            "smoke": [f"-runs={runs}", "-seed=1"],
            "long": [f"-max_total_time={max(1, given.duration // len(targets))}"],
            "replay": ["-runs=0"],
        }[given.what]
        if given.what == "long":
            corpus, fresh = BUILD / "corpus" / target, None
        else:
            fresh = Path(tempfile.mkdtemp(prefix="sallyport-fuzz-"))
            corpus = fresh
        try:
            done = fuzz(target, corpus, options)
        finally:
            if fresh is not None:
                shutil.rmtree(fresh)
        print(done.row(), flush=True)
        fell = fell or done.fell
    return int(fell)


if __name__ == "__main__":
    sys.exit(main())
