"""`sallyport verdict` and `sallyport strategy`: a person's word, on the fly."""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

from engine.cli.status import STATE_DIR
from engine.errors import EXIT_OK, UsageError
from engine.runtime.control import ask

_LAST_PORT = 0xFFFF
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_VERDICT_EPILOG = """\
A verdict that is set comes before the policy's, and only never-deny comes before it. Flows in progress that it
refuses are ended. Clearing the verdict on a source also ends the block that the policy's limits put on it.

example:
  sallyport verdict set --dest 203.0.113.7 deny --expires 2h --reason "incident 812"
  sallyport verdict set --name '*.example.net' deny
  sallyport verdict set --source 198.51.100.0/24 deny
  sallyport verdict list --json
  sallyport verdict clear --name '*.example.net'
  sallyport verdict clear --source 203.0.113.9
"""
_STRATEGY_EPILOG = """\
enforce: as the policy says. observe: nothing of it is held or dropped, and the log says what would have been.
ignore: the policy is not asked; the log marks it as ignored. By executable, then control group, user, destination.

example:
  sallyport strategy set --exe /usr/bin/borg ignore --expires 1d
  sallyport strategy set --cgroup /system.slice/backup.service observe
  sallyport strategy list
  sallyport strategy clear --all
"""
_SELECTORS = {
    "verdict": {"dest": "PREFIX", "name": "NAME", "source": "PREFIX"},
    "strategy": {"exe": "PATH", "cgroup": "PATH", "uid": "N", "dest": "PREFIX", "port": "N"},
}
_WORDS = {"verdict": ("allow", "deny", "reject"), "strategy": ("enforce", "observe", "ignore")}


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for kind, summary, epilog in (
        ("verdict", "set, list and clear verdicts by hand", _VERDICT_EPILOG),
        ("strategy", "enforce, observe or ignore by who or where", _STRATEGY_EPILOG),
    ):
        group = subparsers.add_parser(
            kind, help=summary, description=summary, epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        verbs = group.add_subparsers(dest="verb", metavar="VERB", required=True)
        for verb in ("set", "clear", "list"):
            parser = verbs.add_parser(
                verb, help=f"{verb} {kind}s", epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
            )
            parser.add_argument("--state-dir", metavar="DIR", type=Path, default=STATE_DIR)
            parser.add_argument("--json", action="store_true", help="one JSON document")
            parser.set_defaults(handler={"set": _set, "clear": _clear, "list": _list}[verb], kind=kind)
            if verb == "list":
                continue
            for selector, value in _SELECTORS[kind].items():
                parser.add_argument(f"--{selector}", metavar=value)
            if kind == "verdict":
                parser.add_argument("--port", type=int, metavar="N", help="with --dest: this port only")
                parser.add_argument("--transport", choices=("tcp", "udp"), help="with --dest and --port")
            if verb == "clear":
                parser.add_argument("--all", action="store_true", help=f"every {kind} that was set")
            else:
                parser.add_argument("word", choices=_WORDS[kind])
                parser.add_argument("--expires", metavar="TIME", help="30s, 10m, 2h, 1d from now; default: never")
                parser.add_argument("--reason", default="", help="kept with it, shown in the log")


def seconds(text: str) -> float:
    """Return the seconds of a span like 10m. UsageError when it is none."""
    found = re.fullmatch(r"(\d+)([smhd])", text)
    if not found or not int(found[1]):
        raise UsageError(f"{text!r} is no span of time", hint="Examples: 30s, 10m, 2h, 1d.")
    return float(int(found[1]) * _UNITS[found[2]])


def _order(args: argparse.Namespace, word: str) -> dict[str, Any]:
    names = _SELECTORS[args.kind]
    given = [name for name in names if getattr(args, name) is not None]
    if len(given) != 1:
        options = ", ".join(f"--{name}" for name in names)
        raise UsageError(f"Exactly one of {options} says what the {args.kind} is about")
    by = given[0]
    port = getattr(args, "port", None) if args.kind == "verdict" else None
    transport = getattr(args, "transport", None)
    if port is not None and not 1 <= port <= _LAST_PORT:
        raise UsageError(
            f"{port} is no port", hint=f"Ports are 1 to {_LAST_PORT}; without --port all of them are meant."
        )
    if (port or transport) and by != "dest":
        raise UsageError("--port and --transport go with --dest")
    if transport and not port:
        raise UsageError("--transport goes with --port")
    return {
        "kind": args.kind, "by": by, "value": str(getattr(args, by)), "word": word, "port": port or 0,
        "transport": transport or "",
    }  # fmt: skip


def _set(args: argparse.Namespace) -> int:
    order = _order(args, args.word) | {"reason": args.reason}
    if args.expires:
        order["expires"] = time.time() + seconds(args.expires)
    done = ask(args.state_dir, {"command": "set", "order": order})
    if args.json:
        print(json.dumps(done))
    else:
        cut = f"; {done['cut']} flows in progress ended" if done["cut"] else ""
        print(f"{args.kind} set: {_line(done['set'])}{cut}")
    return EXIT_OK


def _clear(args: argparse.Namespace) -> int:
    request: dict[str, Any] = {"command": "clear", "kind": args.kind}
    if args.all:
        if any(getattr(args, name) is not None for name in _SELECTORS[args.kind]):
            raise UsageError("--all clears every one: give it alone, or a selector alone")
        request["all"] = True
    else:
        request["order"] = _order(args, _WORDS[args.kind][0])
    done = ask(args.state_dir, request)
    print(json.dumps(done) if args.json else f"{done['cleared']} cleared")
    return EXIT_OK


def _list(args: argparse.Namespace) -> int:
    listed = ask(args.state_dir, {"command": "list", "kind": args.kind})
    if args.json:
        print(json.dumps(listed))
        return EXIT_OK
    for entry in listed:
        print(_line(entry))
    if not listed:
        print(f"no {args.kind} stands")
    return EXIT_OK


def _line(entry: dict[str, Any]) -> str:
    if entry["kind"] in ("policy", "block"):
        about = " ".join(f"{fact}={value}" for fact, value in entry["facts"].items()) or "everything"
        left = f", {entry['seconds_left']} s left" if entry["seconds_left"] is not None else ""
        return f"{entry['word']:9} {about}  [{entry['kind']}{left}: {'; '.join(entry['reasons'])}]"
    port = f" port {entry['port']}" if entry["port"] else ""
    over = f" {entry['transport']}" if entry["transport"] else ""
    until = (
        f", until {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(entry['expires']))}" if entry["expires"] else ""
    )
    why = f": {entry['reason']}" if entry["reason"] else ""
    return f"{entry['word']:9} {entry['by']}={entry['value']}{port}{over}  [set by hand{until}{why}]"
