"""`sallyport panic`: everything off, at once."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

from engine.errors import EXIT_FINDING, EXIT_OK, PrivilegeError

_DESCRIPTION = """\
Let every packet pass and detach everything that any engine on this machine has attached, now. Works without an
engine, without a configuration and without a state directory. An engine that still runs guards nothing afterwards:
stop it, or start it again.
"""
_EPILOG = """\
exit code: 0 everything is detached, 1 something could not be removed (it passes everything all the same).

example:
  sallyport panic
  sallyport panic --state-dir /var/lib/sallyport
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "panic",
        help="detach everything at once",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--state-dir", metavar="DIR", type=Path, help="only the engine of this directory (default: every one)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.set_defaults(handler=panic)


def panic(args: argparse.Namespace) -> int:
    from engine.kernel.detach import detach, pass_everything  # noqa: PLC0415 - netlink only where it is needed
    from engine.kernel.pins import Pins, instances  # noqa: PLC0415

    if os.geteuid() != 0:
        raise PrivilegeError("Detaching needs root", hint="Run it with sudo.")
    wanted = Pins.of(args.state_dir).instance if args.state_dir else ""
    found = [pins for pins in instances() if wanted in ("", pins.instance)]
    for pins in found:
        # All of them first: taking one down takes a moment, and this is a panic.
        pass_everything(pins)
    done = [detach(pins) for pins in found]
    if args.json:
        print(json.dumps([asdict(one) for one in done]))
    for one in done if not args.json else []:
        print(f"{one.instance}: detached" + (f" from {len(one.interfaces)} interfaces" if one.interfaces else ""))
        for problem in one.problems:
            print(f"  {problem}")
    if not done and not args.json:
        print("nothing is attached")
    return EXIT_FINDING if any(one.problems for one in done) else EXIT_OK
