"""The lab's commands; `make vm-test` and `make vm-matrix` call them."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from vagrant.vm import acceleration, box, kernels, shared, stories, tree, trial
from vagrant.vm.archive import Archive
from vagrant.vm.errors import LabError, UsageError, only_our_errors
from vagrant.vm.interruption import Interrupted, heeded
from vagrant.vm.matrix import Row, read, render, row, write
from vagrant.vm.pair import Pair
from vagrant.vm.place import CHECKOUT, cache, require, require_architecture
from vagrant.vm.spaces import Spaces
from vagrant.vm.vagrantfile import Boxes

DOCUMENT = CHECKOUT / "docs/kernels.md"
FIGURES = CHECKOUT / "docs/kernels.json"
LIMIT_SECONDS = 3600

_EPILOG = """\
exit codes: what the steps ended with; 1 the system refused something else, 2 wrong words, 10 not an x86_64 machine,
11 needs root (to build a root tree, once), 12 network, 14 disk full, 15 a package or an image could not be made, 20 a
program is missing, 21 the machine did not boot, 22 it was not done in time, 23 the kernel lacks something that the
machine needs, 128 and a signal's number when one ended it

examples:
  python3 -m vagrant.vm test --kernel 6.1
  python3 -m vagrant.vm test --kernel newest --step kernel tests/kernel/test_hold.py
  python3 -m vagrant.vm test --system here --step kernel tests/kernel/test_hold.py
  python3 -m vagrant.vm matrix --kernel 6.1 --kernel 6.12
  python3 -m vagrant.vm matrix --step kernel tests/kernel/test_hold.py tests/kernel/test_verdicts.py
"""


def say(text: str) -> None:
    print(f"vm: {text}", flush=True)


def _told(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python3 -m vagrant.vm",
        description="Run the tests and the lab in a throw-away machine with another kernel. Nothing is installed here.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    test = commands.add_parser("test", help="boot one kernel and run steps in it")
    test.add_argument("--kernel", default="6.1", help="a version such as 6.1, or newest (default: 6.1)")
    test.add_argument("--step", action="append", help=f"one of {', '.join(trial.STEPS)} (default: kernel and lab)")
    test.add_argument("tests", nargs="*", help="for the step kernel (default: tests/kernel)")
    test.set_defaults(run=_test)
    matrix = commands.add_parser("matrix", help="run everything on several kernels and write docs/kernels.md")
    matrix.add_argument("--kernel", action="append", help=f"only this one (default: {', '.join(kernels.MATRIX)})")
    matrix.add_argument("--step", action="append", help="only these steps")
    matrix.add_argument("tests", nargs="*", help="for the step kernel: whole files (default: tests/kernel)")
    matrix.set_defaults(run=_matrix)
    first = commands.add_parser("first-run", help="the README's two commands on clean systems")
    first.add_argument("systems", nargs="*", help=f"some of {', '.join(tree.SYSTEMS)} (default: all)")
    first.add_argument("--limit", type=seconds, default=LIMIT_SECONDS, help="seconds that a machine may take")
    first.set_defaults(run=_first_run, tests=[])
    trees = f"root tree: one of {', '.join(tree.SYSTEMS)}"
    here = f"{trees}; or {shared.SYSTEM}: this machine's own and its checkout, read-only (root; nothing is built)"
    for one in (test, matrix):
        one.add_argument("--system", default="debian12", help=here)
        one.add_argument("--limit", type=seconds, default=LIMIT_SECONDS, help="seconds that a machine may take")
    build = commands.add_parser("tree", help="build a root tree (root)")
    build.add_argument("system")
    build.add_argument("image", type=Path)
    build.set_defaults(run=_tree)
    telling = commands.add_parser("stories", help="play the scenarios of vagrant/scenarios")
    telling.add_argument("--place", choices=("machines", "namespaces"), default="machines")
    telling.add_argument("--kernel", default="6.1")
    telling.add_argument("--system", default="debian12", help=trees)
    telling.add_argument("names", nargs="*", help="such as 10-a-denied-name (default: all that can be played there)")
    telling.set_defaults(run=_stories)
    making = commands.add_parser("box", help="build a box for Vagrant and libvirt from Debian packages (root)")
    making.set_defaults(run=_box)
    trying = commands.add_parser("vagrant", help="bring up the Vagrantfile's machines, try them, destroy them (root)")
    trying.set_defaults(run=_vagrant, system=box.SYSTEM)
    args = parser.parse_args(words)

    try:
        with heeded(), only_our_errors():
            return int(args.run(args))
    except LabError as error:
        print(f"vm: {error}\n  {error.hint}", file=sys.stderr)
        return error.exit_code
    except Interrupted as end:
        print(f"vm: {end}; what it had running is gone", file=sys.stderr)
        return end.exit_code


def seconds(word: str) -> float:
    """A time limit; its name stands in what argparse says of another word."""
    limit = float(word)
    if not 0 < limit < math.inf:
        raise ValueError(word)
    return limit


def _tree(args: argparse.Namespace) -> int:
    tree.build(args.system, CHECKOUT, args.image, say)
    return 0


def _box(args: argparse.Namespace) -> int:
    made = box.obtain(CHECKOUT, cache(), say)
    say(f"the box: {made}")
    box.add(made)
    say(f"vagrant knows it as {box.NAME}")
    return 0


def _vagrant(args: argparse.Namespace) -> int:
    """The lab in one machine, and then the stories between both."""
    _, accelerator = _engine("6.1")
    made = box.obtain(CHECKOUT, cache(), say)
    box.add(made)
    with Boxes(CHECKOUT, accelerator, _told) as boxes:
        say(f"both machines are up after {boxes.up_seconds:.0f} s; the lab in enforcer")
        code = boxes.ssh("enforcer", "sallyport lab")
        say(f"the lab ended with exit code {code}; the stories between enforcer and peer")
        told = [one for one in stories.read() if not one.needs_power]
        return _play_all(told, lambda: contextlib.nullcontext(boxes)) or code


def _test(args: argparse.Namespace) -> int:
    outcome = _trial(args, args.kernel, args.step or trial.DEFAULT_STEPS)
    say(f"Linux {outcome.release}: exit code {outcome.code} after {outcome.seconds:.0f} s")
    return outcome.code


def _first_run(args: argparse.Namespace) -> int:
    """Each system is built anew, with its own release's kernel: what a run before left must not help."""
    failed: list[str] = []
    systems = args.systems or list(tree.SYSTEMS)
    for system in systems:
        tree.suite_of(system)
    for system in systems:
        # Before the old tree goes: a new one cannot be had without these.
        _engine(tree.KERNELS[system])
        tree.forget(system, cache())
        args.system = system
        outcome = _trial(args, tree.KERNELS[system], ["demo"])
        say(f"{system}: setup ended well in a clean tree; the lab ended with exit code {outcome.code}")
        failed += [system] * bool(outcome.code)
    return 1 if failed else 0


def _matrix(args: argparse.Namespace) -> int:
    steps = args.step or trial.MATRIX_STEPS
    trial.check_steps(steps)
    if parts := [test for test in args.tests if "::" in test]:
        raise UsageError(f"{parts[0]} is part of a file.", hint="The table counts by files: name whole ones.")
    wanted = args.kernel or kernels.MATRIX
    for one in wanted:
        kernels.check_wanted(one)
    code = 0
    for one in wanted:
        outcome = _trial(args, one, steps)
        line = ".".join(outcome.release.split(".")[:2])
        # After each, so that a matrix that is broken off has not been in vain; and read anew, because another one may
        # have been writing meanwhile.
        rows: dict[str, Row] = read(FIGURES)
        rows[line] = row(rows.get(line), outcome)
        write(FIGURES, rows)
        DOCUMENT.write_text(render(rows))
        say(f"Linux {outcome.release}: exit code {outcome.code} after {outcome.seconds:.0f} s; {DOCUMENT.name} written")
        code = max(code, outcome.code)
    return code


def _stories(args: argparse.Namespace) -> int:
    told = stories.choose(stories.read(), args.names)
    if args.place == "namespaces":
        return _play_all([one for one in told if not one.needs_power or args.names], lambda: Spaces(CHECKOUT))
    kernel, image, accelerator = _parts(args, args.kernel)
    return _play_all(told, lambda: Pair(kernel, image, CHECKOUT, accelerator))


def _play_all(told: Sequence[stories.Story], place: Callable[[], AbstractContextManager[Pair | Spaces | Boxes]]) -> int:
    """Play one story after the other, each in what `place` gives it; exit code 1 when one did not go as told."""
    failed: list[str] = []
    for story in told:
        say(f"{story.name}: {story.title}")
        with place() as here:
            for played in stories.play(story, here.carry_out):
                print(stories.line(played), flush=True)
                if played.wrong:
                    failed.append(story.name)
    say(f"{len(told) - len(failed)} of {len(told)} stories went as told" + "".join(f"; not {name}" for name in failed))
    return 1 if failed or not told else 0


def _trial(args: argparse.Namespace, wanted: str, steps: Sequence[str]) -> trial.Outcome:
    """What is wrong with the words is said before anything is downloaded."""
    trial.check_steps(steps)
    tests = args.tests or trial.DEFAULT_TESTS
    trial.check_tests(tests, CHECKOUT)
    image: Path | None = None
    if args.system == shared.SYSTEM:
        shared.check(CHECKOUT)
        kernel, accelerator = _engine(wanted)
    else:
        kernel, image, accelerator = _parts(args, wanted)
    return trial.run(
        kernel, image, CHECKOUT, accelerator, steps=steps, tests=tests, limit=args.limit, say=say, told=_told
    )


def _parts(args: argparse.Namespace, wanted: str) -> tuple[kernels.Kernel, Path, str]:
    """What a machine is made of: the kernel, the root tree's image, and what runs it."""
    tree.suite_of(args.system)
    kernel, accelerator = _engine(wanted)
    return kernel, tree.obtain(args.system, CHECKOUT, cache(), say), accelerator


def _engine(wanted: str) -> tuple[kernels.Kernel, str]:
    """The kernel, and what runs a machine with it."""
    kernels.check_wanted(wanted)
    require_architecture()
    require(["qemu-system-x86_64", "setpriv", "git"])
    folder = cache()
    kernel, note = kernels.obtain(wanted, folder, Archive(folder / "apt"))
    if note:
        say(note)
    return kernel, acceleration.choose(kernel, folder, say)


if __name__ == "__main__":
    sys.exit(main())
