"""`sallyport lab`: the engine on real traffic, between network namespaces of its own."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EXIT_FINDING, EXIT_OK

if TYPE_CHECKING:
    from engine.lab.play import Played
    from engine.lab.scenario import Result

_DESCRIPTION = """\
Build two network namespaces with a wire between them, start the engine there as a user would, and play scenarios with
real clients (curl, openssl, Python) against nginx: what is expected, what was observed. At its end everything is taken
away again, also after Ctrl-C; what a killed run left is taken away by the next one. Needs root.
"""
_EPILOG = """\
example:
  sallyport lab
  sallyport lab --json --state-dir /tmp/lab     # and look at the log: sallyport audit show --state-dir /tmp/lab

Exit code 0: every scenario passed and the audit log verifies; 1: one did not.
With --json, one object on stdout: passed, seconds, state_dir (null when the log is gone), scenarios (name, expected,
observed, passed, milliseconds) and verify (the report of `sallyport audit verify --json`); the progress is on stderr.
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line's parser."""
    parser = subparsers.add_parser(
        "lab",
        help="try the engine on real traffic in network namespaces",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument(
        "--state-dir", metavar="DIR", type=Path, default=None, help="keep the log here (default: it goes with the lab)"
    )
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Handle the command. 128 and the signal's number when a signal ended it. Raises SallyportError."""
    # Netlink and all that goes with it: only who asks for the lab pays for it.
    from engine.lab import report  # noqa: PLC0415
    from engine.lab.interruption import Interruption  # noqa: PLC0415
    from engine.lab.play import run_lab  # noqa: PLC0415
    from engine.lab.scenarios import ALL  # noqa: PLC0415

    progress = sys.stderr if args.json else sys.stdout
    width = max(len(scenario.name) for scenario in ALL)

    def told(result: Result) -> None:
        print(report.line(result, width), file=progress, flush=True)

    def begun(name: str) -> None:
        print(f"lab {name}: building two network namespaces, nginx and its clients", file=progress, flush=True)

    try:
        played = run_lab(ALL, args.state_dir, begun=begun, told=told)
    except Interruption as interruption:
        print("lab: interrupted; everything is taken away", file=sys.stderr)
        return 128 + interruption.number
    if args.json:
        print(json.dumps(_document(played, args.state_dir)))
    else:
        columns = shutil.get_terminal_size((120, 24)).columns
        print(f"\n{report.table(played.results, columns)}\n\n{report.verified(played.verify)}")
        print(report.closing(played.results, played.seconds))
        if args.state_dir is not None:
            print(f"The log stays: sallyport audit show --state-dir {args.state_dir}")
    return EXIT_OK if played.passed else EXIT_FINDING


def _document(played: Played, state_dir: Path | None) -> dict[str, object]:
    return {
        "passed": played.passed,
        "seconds": round(played.seconds, 1),
        "state_dir": str(state_dir) if state_dir is not None else None,
        "scenarios": [asdict(result) for result in played.results],
        "verify": played.verify,
    }
