"""`sallyport status`: what an engine is doing."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from engine.errors import EXIT_FINDING, EXIT_OK, EngineAbsentError
from engine.runtime.control import ask

STATE_DIR = Path("/var/lib/sallyport")
_EPILOG = """\
exit code: 0 healthy, 1 degraded, 3 no engine answers.

example:
  sallyport status --state-dir /var/lib/sallyport
  sallyport status --json | jq .counters
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "status",
        help="show what the engine is doing",
        description="Show mode, generation, interfaces, programs, maps, evaluator, posture, losses and the log's head.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--state-dir", metavar="DIR", type=Path, default=STATE_DIR)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.set_defaults(handler=show)


def show(args: argparse.Namespace) -> int:
    try:
        status = ask(args.state_dir, {"command": "status"})
    except EngineAbsentError as error:
        if args.json:
            print(json.dumps({"state": "absent", "problems": [error.message]}))
            return error.exit_code
        raise
    print(json.dumps(status) if args.json else text(status))
    return EXIT_OK if status["state"] == "healthy" else EXIT_FINDING


def text(status: dict[str, Any]) -> str:
    """Return the status for a person."""
    generation = status["generation"]
    version = generation["commit"] or f"sha256:{generation['digest'][:12]}"
    dirty = ", work tree dirty" if generation["dirty"] and generation["commit"] else ""
    lines = [
        f"{status['state']}: {status['mode']}, pid {status['pid']}",
        *(f"  problem     {problem}" for problem in status["problems"]),
        f"generation    {generation['number']} ({version[:19]}{dirty}) from {status['policy']}",
        "interfaces    " + ", ".join(f"{name} (xdp {device['xdp']})" for name, device in status["interfaces"].items()),
        f"cgroup        {status['cgroup']}",
        f"evaluator     {status['evaluator']['name']}, {status['evaluator']['restarts']} restarts",
        f"audit         {status['audit']['status']}, {status['audit']['durable']} entries durable, "
        f"{status['audit']['queued']} queued, head {status['audit']['head']}",
        "",
        "features",
        *(
            f"  {name:38} {feature['state']:9} {feature['why']}".rstrip()
            for name, feature in status["features"].items()
        ),
        "",
        "programs                id     instructions  verified",
    ]
    for name, program in status["programs"].items():
        lines.append(f"  {name:20} {program['id']:>6} {program['instructions']:>13} {program['verified']:>9}")
    lines += ["", "maps                    entries        most  full"]
    for name, fill in status["maps"].items():
        lines.append(f"  {name:20} {fill['entries']:>8} {fill['max']:>11} {fill['entries'] / fill['max']:>5.0%}")
    lines += ["", "counters"]
    lines += [f"  {name:26} {value}" for name, value in status["counters"].items() if value]
    lines += _sources(status["sources"])
    lines += ["", "losses        " + (_losses(status["losses"]) or "none"), "", "posture"]
    lines += [f"  {condition:20} {stance}" for condition, stance in status["posture"].items()]
    return "\n".join(lines)


def _sources(sources: dict[str, Any]) -> list[str]:
    lines = ["", f"sources       {sources['blocked']} blocked"]
    for block in sources["blocks"]:
        word = "would be dropped" if block["observed"] else f"{block['dropped']} dropped"
        asked = f"{block['ports']} ports, {block['syns']} SYNs, {block['unanswered']} unanswered"
        lines.append(f"  {block['source']:26} {block['cause']}, {block['seconds_left']} s left, {word} ({asked})")
    lines += [f"  {name:26} {value}" for name, value in sources["counters"].items() if value]
    flags = ", ".join(f"{flag} {count}" for flag, count in sources["tcp_flags"].items() if count)
    return [*lines, *([f"  TCP flags                  {flags}"] if flags else [])]


def _losses(losses: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in losses.items() if count)
