"""The command's noun `audit`: show, verify, head, key, prove. `register` adds it; every handler returns an
exit code."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from audit import keys, proof, review
from audit.checkpoint import VerifierKey, encode_base64
from audit.errors import EXIT_FINDING, EXIT_OK, AuditError, FormatError, RequestError
from audit.layout import Layout
from audit.terminal import escape, escape_json
from audit.verify import verify

DEFAULT_STATE_DIR = "/var/lib/sallyport"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `audit` and its verbs to the command's parser; each sets `handler`, called with the parsed
    arguments."""
    noun = subparsers.add_parser(
        "audit",
        help="read, verify and prove the signed log",
        description="Read, verify and prove the signed log.",
        epilog="example: sallyport audit verify --state-dir /var/lib/sallyport",
    )
    verbs = noun.add_subparsers(dest="verb", required=True, metavar="VERB")
    _register_show(verbs)
    _register_verify(verbs)
    head = _verb(verbs, "head", "print the last signed head", "sallyport audit head > elsewhere/head", _head)
    head.add_argument("--json", action="store_true", help="origin, size, root and note as one JSON object")
    key = _verb(verbs, "key", "print the verifier key, to be published elsewhere", "sallyport audit key", _key)
    key.add_argument("--json", action="store_true", help="name, id and key as one JSON object")
    _register_prove(verbs)


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    example: str,
    handler: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")
    parser.add_argument(
        "--state-dir", type=Path, default=Path(DEFAULT_STATE_DIR), metavar="DIR", help="default: %(default)s"
    )
    parser.set_defaults(handler=lambda args: _guarded(handler, args))
    return parser


def _register_show(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    show = _verb(
        verbs,
        "show",
        "print entries as they are stored, oldest first; says nothing about their truth (see verify)",
        "sallyport audit show --since 1h --verdict deny --name '*.example.com'",
        _show,
    )
    show.add_argument("--since", type=moment, metavar="TIME", help="RFC 3339, or how long ago: 90s, 15m, 2h, 1d")
    show.add_argument("--until", type=moment, metavar="TIME", help="before this time")
    show.add_argument("--type", default="", help="decision, flow, socket, start, gap, ...")
    show.add_argument("--verdict", default="", help="allow, deny, reject, undecided; also what would have been")
    show.add_argument("--name", default="", metavar="GLOB", help="server name")
    show.add_argument("--address", type=network, metavar="CIDR", help="either end of the flow")
    show.add_argument("--exe", default="", metavar="GLOB", help="path of the executable")
    show.add_argument("--rule", default="", metavar="GLOB", help="a rule among the reasons")
    show.add_argument("--seq", type=span, metavar="A-B", help="sequence numbers: 7, 7-, 7-90", default=(0, None))
    show.add_argument("--limit", type=count, metavar="N", help="only the last N")
    show.add_argument("--follow", action="store_true", help="go on with what is appended")
    show.add_argument("--json", action="store_true", help="the stored lines, dangerous characters as JSON escapes")


def _register_verify(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = _verb(
        verbs,
        "verify",
        "check every line, head and signature; exits with 1 on any finding",
        "sallyport audit verify --key 'name+id+key' --head elsewhere/head",
        _verify,
    )
    check.add_argument("--key", metavar="KEY", help="the published verifier key, or a file that holds it")
    check.add_argument("--head", type=Path, action="append", default=[], metavar="FILE", help="a head kept elsewhere")
    check.add_argument("--json", action="store_true", help="the report as one JSON object")


def _register_prove(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    prove = _verb(
        verbs,
        "prove",
        "print a proof that others can check without the log",
        "sallyport audit prove inclusion 1234 > entry.tlog-proof",
        _prove,
    )
    prove.add_argument("what", choices=["inclusion", "consistency"], help="of an entry; of an older head's size")
    prove.add_argument("number", type=number, metavar="N", help="sequence number, or size of the older head")
    prove.add_argument("--entry", action="store_true", help="print the entry's bytes instead of its proof")


def moment(text: str) -> int:
    """Return wall time in ns from RFC 3339 (without a zone: UTC) or from how long ago (90s, 15m, 2h, 1d)."""
    ago = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if ago:
        return time.time_ns() - int(ago[1]) * _UNITS[ago[2]] * 1_000_000_000
    try:
        # Python 3.10 knows no Z in ISO times.
        when = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text))
        return int((when if when.tzinfo else when.replace(tzinfo=timezone.utc)).timestamp() * 1_000_000) * 1000
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{escape(text)} is no time: 2026-01-31T12:00:00Z, or 15m for ago") from error


def network(text: str) -> review.Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{escape(text)} is no address: 192.0.2.7 or 2001:db8::/32") from error


def span(text: str) -> tuple[int, int | None]:
    match = re.fullmatch(r"(\d{1,19})(-(\d{1,19})?)?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{escape(text)} is no range of sequence numbers: 7, 7- or 7-90")
    first = int(match[1])
    if match[2] is None:
        return first, first
    return first, None if match[3] is None else int(match[3])


def number(text: str) -> int:
    if not re.fullmatch(r"\d{1,19}", text):
        raise argparse.ArgumentTypeError(f"{escape(text)} is no plain number")
    return int(text)


def count(text: str) -> int:
    if number(text) == 0:
        raise argparse.ArgumentTypeError("at least 1")
    return int(text)


def _guarded(handler: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    try:
        return handler(args)
    except AuditError as error:
        print(_escape_lines(error.diagnostics()), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_OK  # the ordinary end of --follow
    except BrokenPipeError:
        # The reader (head, less) went away; the interpreter must not find that out again while it flushes at
        # exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


def _escape_lines(text: str) -> str:
    return "\n".join(escape(line) for line in text.split("\n"))


def _existing(state_dir: Path) -> Layout:
    layout = Layout(state_dir)
    layout.require()
    return layout


def _show(args: argparse.Namespace) -> int:
    first, last = args.seq
    chosen = review.Filter(
        since=args.since,
        until=args.until,
        type=args.type,
        verdict=args.verdict,
        name=args.name,
        address=args.address,
        exe=args.exe,
        rule=args.rule,
        first=first,
        last=last,
    )
    reader = review.follow if args.follow else review.read
    for line, entry in reader(_existing(args.state_dir), chosen, limit=args.limit):
        print(review.line_for_programs(line) if args.json else review.line_for_people(entry), flush=args.follow)
    return EXIT_OK


def _given_key(text: str) -> VerifierKey:
    if Path(text).is_file():
        return keys.load_public(Path(text))
    try:
        return VerifierKey.parse(text)
    except FormatError as error:
        raise RequestError(
            f"--key is neither a verifier key nor a file with one. {error.message}", hint="See `sallyport audit key`."
        ) from error


def _note(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"The head {path} cannot be read: {error.strerror}.", hint="Check --head.") from error


def _verify(args: argparse.Namespace) -> int:
    key = _given_key(args.key) if args.key else None
    report = verify(args.state_dir, key=key, external=[_note(path) for path in args.head])
    if args.json:
        print(escape_json(msgspec.json.encode(report.document()).decode()))
    else:
        for line in report.text():
            print(line)
    return EXIT_OK if report.ok else EXIT_FINDING


def _head(args: argparse.Namespace) -> int:
    head = proof.last_head(_existing(args.state_dir))
    if args.json:
        said = {
            "origin": head.origin,
            "size": head.size,
            "root": encode_base64(head.root),
            "note": head.note().decode(),
        }
        print(msgspec.json.encode(said).decode())
    else:
        _print_bytes(head.note())
    return EXIT_OK


def _key(args: argparse.Namespace) -> int:
    key = keys.load_public(_existing(args.state_dir).root / keys.PUBLIC_NAME)
    print(msgspec.json.encode({"name": key.name, "id": key.id.hex(), "key": str(key)}).decode() if args.json else key)
    return EXIT_OK


def _prove(args: argparse.Namespace) -> int:
    layout = _existing(args.state_dir)
    if args.what == "consistency":
        if args.entry:
            raise RequestError("--entry goes with `prove inclusion` only.", hint="A consistency proof has no entry.")
        _print_bytes(proof.prove_consistency(layout, args.number))
    elif args.entry:
        _print_bytes(proof.entry_line(layout, args.number))
    else:
        _print_bytes(proof.prove_inclusion(layout, args.number).text())
    return EXIT_OK


def _print_bytes(data: bytes) -> None:
    """Write exact bytes: a proof that print() had touched would prove nothing."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
