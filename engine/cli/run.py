"""`sallyport run`: the engine in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from pathlib import Path

from engine.config import Config, EvaluatorKind, Flags, Mode
from engine.errors import EXIT_OK, PrivilegeError, UsageError

_DESCRIPTION = """\
Guard one or more interfaces in the foreground. The default mode is observe: nothing is held or dropped, the same
decisions are made from copies and logged as what would have been. One line on stdout says that every program is
attached; alerts go to stderr.

SIGTERM or Ctrl-C ends it and detaches everything (--leave-attached: standing verdicts go on to be enforced);
SIGHUP reads the policy again, which happens by itself when its folder changes.
"""
_EPILOG = """\
example:
  sallyport run --interface eth0 --policy /etc/sallyport/policies
  sallyport run --interface eth0 --inside 'veth*' --policy policies --mode enforce
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "run",
        help="guard interfaces, in the foreground",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--interface",
        metavar="DEV",
        action="extend",
        nargs="+",
        default=[],
        help="an interface to guard, or a pattern for those that come and go ('veth*'); repeatable",
    )
    parser.add_argument(
        "--inside",
        metavar="DEV",
        action="extend",
        nargs="+",
        default=[],
        help="an interface or pattern by which containers or machines reach the network through this host; repeatable",
    )
    parser.add_argument("--policy", metavar="DIR", type=Path, help="the policy folder, in git or not")
    parser.add_argument("--state-dir", metavar="DIR", type=Path, help="keys, log, settings (/var/lib/sallyport)")
    parser.add_argument("--mode", choices=[mode.value for mode in Mode], help="observe (default) or enforce")
    parser.add_argument(
        "--evaluator", choices=[kind.value for kind in EvaluatorKind], help="embedded (default) or a real OPA server"
    )
    parser.add_argument("--cgroup", metavar="PATH", type=Path, help="whose processes are known (default: all)")
    parser.add_argument("--config", metavar="FILE", type=Path, help="TOML configuration")
    parser.add_argument("--leave-attached", action="store_true", help="leave the programs in force at the end")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        raise PrivilegeError("Guarding an interface needs root", hint="Run it with sudo.")
    from engine.config_file import load  # noqa: PLC0415 - what only this command needs, only this command pays
    from engine.kernel.spawn import LoaderProcess  # noqa: PLC0415
    from engine.service.sizes import sizes  # noqa: PLC0415

    config = load(
        args.config,
        Flags(
            interfaces=tuple(args.interface),
            inside=tuple(args.inside),
            policy=args.policy,
            state_dir=args.state_dir,
            mode=Mode(args.mode) if args.mode else None,
            evaluator=EvaluatorKind(args.evaluator) if args.evaluator else None,
            cgroup=args.cgroup,
        ),
    )
    _require(config)
    # The programs are compiled, or read, while our imports run: half a second of the two that a start may take.
    loader = LoaderProcess(config.state_dir.resolve(), sizes(config.maps))
    try:
        from engine.service.supervisor import Supervisor  # noqa: PLC0415

        print(config.posture.text(), file=sys.stderr, end="", flush=True)
        _be_quick()
        supervisor = Supervisor(config, loader, leave_attached=args.leave_attached)
        asyncio.run(supervisor.run(lambda line: print(line, flush=True)))
    finally:
        loader.dismiss()
    return EXIT_OK


def _require(config: Config) -> None:
    if not config.interfaces:
        raise UsageError("No interface is given", hint="Name one or more with --interface DEV.")
    if config.policy is None:
        raise UsageError("No policy is given", hint="Name its folder with --policy DIR.")


def _be_quick() -> None:
    """Held packets wait for this process: it comes before others, and before its own log writer.

    With the interpreter's usual 5 ms between threads, a thread that signs the log kept half of all held packets
    waiting for them: hold to release 4.0 against 2.1 ms at the median, in turns.
    """
    sys.setswitchinterval(0.0002)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
