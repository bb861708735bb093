"""`sallyport selftest`: does the gate do what it says, here? And what gets around it?"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audit import keys
from audit.checkpoint import SigningKey, VerifierKey
from audit.errors import FormatError
from engine import __version__
from engine.errors import EXIT_FINDING, EXIT_OK, InputError, UsageError

if TYPE_CHECKING:
    from engine.lab.scenario import Result
    from engine.selftest.attempt import Tried

_STATE_DIR = Path("/var/lib/sallyport")
_DESCRIPTION = """\
Build namespaces and a control group of its own, start the engine there, and prove on real traffic that a denied
connection is denied (by the client's word, the kernel's counters and a capture on the far side), that an allowed one
passes, that an unseen name is held, and that all this stands with the engine killed. A gate that is at work on this
host is left alone. At its end everything is taken away again, also after Ctrl-C. Needs root.
"""
_EPILOG = """\
example:
  sallyport selftest --note /var/lib/sallyport/selftest.note
  sallyport selftest verify /var/lib/sallyport/selftest.note
  sallyport selftest bypass

Exit code 0: every proof holds; 1: one does not. The result is signed with the key of the audit log (see --sign-with)
when there is one. With --json, one object on stdout: passed, kernel, machine, version, time, proofs (name, expected,
observed, passed, milliseconds) and note (the signed note, null without a key); the progress is on stderr.
"""
_BYPASS_DESCRIPTION = """\
Try every known way around the gate against the real one, in namespaces of its own: each first without a gate, where it
must get through, then twice against it. A capture on the far side of the wire is the judge. Takes under a minute on a
quiet machine. Needs root.
"""
_BYPASS_EPILOG = """\
example:
  sallyport selftest bypass
  sallyport selftest bypass --markdown > docs/bypass.md

Results: blocked; seen (gets through, and the log tells); open (gets through, and the log does not tell); not here (does
not get through without a gate either). Exit code 0: nothing is open; 1: something is, as on every kernel: a program
with CAP_NET_RAW sends below the gate.
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its verbs to the command line's parser."""
    parser = subparsers.add_parser(
        "selftest",
        help="prove on this machine that the gate denies, and try the ways around it",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument(
        "--sign-with", metavar="DIR", type=Path, default=None,
        help=f"the state directory whose audit key signs (default: {_STATE_DIR}, if it has one)",
    )  # fmt: skip
    parser.add_argument("--note", metavar="FILE", type=Path, help="write the signed note here too")
    parser.set_defaults(handler=run)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    bypass = verbs.add_parser(
        "bypass",
        help="try every known way around the gate",
        description=_BYPASS_DESCRIPTION,
        epilog=_BYPASS_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    form = bypass.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object on stdout")
    form.add_argument("--markdown", action="store_true", help="the document docs/bypass.md on stdout")
    bypass.set_defaults(handler=run_bypass)
    check = verbs.add_parser(
        "verify",
        help="check the signature of a selftest's note, and say what it states",
        description="Check the signature of a selftest's note, and say what it states.",
        epilog="example: sallyport selftest verify selftest.note --key elsewhere/key.pub\n\n"
        "Exit code 0: properly signed, and every proof held; 1: properly signed, and one did not; 10: not signed so.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("file", metavar="FILE", type=Path, help="what --note wrote")
    check.add_argument("--key", metavar="KEY", help="the published verifier key, or a file that holds it")
    check.add_argument(
        "--state-dir", metavar="DIR", type=Path, default=_STATE_DIR,
        help="else the key of this state directory (default: %(default)s)",
    )  # fmt: skip
    check.set_defaults(handler=run_verify)


def run(args: argparse.Namespace) -> int:
    """Handle `selftest`. 128 and the signal's number when a signal ended it. Raises SallyportError, AuditError."""
    from engine.lab import report  # noqa: PLC0415 - netlink and all that: only who asks for it pays for it
    from engine.selftest import note  # noqa: PLC0415
    from engine.selftest.proofs import PROOFS, run_proofs  # noqa: PLC0415

    # Before anything is built: a key that cannot be used is no surprise for the end.
    key = _signing_key(args.sign_with)
    if args.note and key is None:
        raise UsageError(
            f"There is no key to sign a note with in {_STATE_DIR}",
            hint="Name the state directory of an engine that has run with --sign-with.",
        )
    width = max(len(proof.name) for proof in PROOFS)
    progress = sys.stderr if args.json else sys.stdout

    def told(result: Result) -> None:
        print(report.line(result, width), file=progress, flush=True)

    results = _interruptible(lambda begun: run_proofs(begun=begun, told=told), progress)
    if isinstance(results, int):
        return results
    # Nothing shown is nothing proved.
    passed = bool(results) and all(each.passed for each in results)
    document = {
        "passed": passed,
        "kernel": platform.release(),
        "machine": platform.machine(),
        "version": __version__,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "proofs": [asdict(each) for each in results],
    }
    signed = note.sign(document, key) if key else None
    if signed and args.note:
        _write(args.note, signed)
    if args.json:
        print(json.dumps({**document, "note": signed.decode() if signed else None}))
    else:
        print(f"\n{report.table(results, shutil.get_terminal_size((120, 24)).columns)}\n")
        print(f"{sum(each.passed for each in results)} of {len(results)} proofs hold on Linux {platform.release()}")
        print(_signature(signed, key.verifier if key else None, args.note))
    return EXIT_OK if passed else EXIT_FINDING


def run_bypass(args: argparse.Namespace) -> int:
    """Handle `selftest bypass`. 128 and the signal's number when a signal ended it. Raises SallyportError."""
    from engine.selftest import table  # noqa: PLC0415
    from engine.selftest.attempts import ALL  # noqa: PLC0415
    from engine.selftest.bypass import run_bypass as make_attempts  # noqa: PLC0415

    width = max(len(attempt.name) for attempt in ALL)
    progress = sys.stderr if args.json or args.markdown else sys.stdout

    def told(tried: Tried) -> None:
        print(table.line(tried, width), file=progress, flush=True)

    done = _interruptible(lambda begun: make_attempts(ALL, begun=begun, told=told), progress)
    if isinstance(done, int):
        return done
    about = (platform.release(), platform.machine(), __version__)
    if args.json:
        print(json.dumps(table.document(done, *about)))
    elif args.markdown:
        print(table.markdown(done, *about), end="")
    else:
        print(f"\n{table.text(done, shutil.get_terminal_size((120, 24)).columns)}\n")
        print(f"{table.summary(done)} on Linux {platform.release()}")
    return EXIT_FINDING if table.counts(done)["open"] else EXIT_OK


def run_verify(args: argparse.Namespace) -> int:
    """Handle `selftest verify`. Raises InputError, AuditError."""
    from engine.selftest import note  # noqa: PLC0415

    try:
        data = args.file.read_bytes()
    except OSError as error:
        raise InputError(f"The note {args.file} cannot be read: {error.strerror}") from error
    document = note.verify(data, _verifier_key(args.key, args.state_dir))
    proofs: list[dict[str, Any]] = document["proofs"]
    print(f"properly signed: a selftest of version {document['version']} on Linux {document['kernel']}", end=", ")
    print(f"{document['time']}: {sum(each['passed'] for each in proofs)} of {len(proofs)} proofs hold")
    for each in proofs:
        print(f"  {'ok' if each['passed'] else 'FAILED':6} {each['name']}")
    return EXIT_OK if document["passed"] else EXIT_FINDING


def _interruptible(work: Callable[[Callable[[str], None]], Sequence[Any]], progress: Any) -> Sequence[Any] | int:
    """Run, and return the results, or the exit code of the signal that ended it."""
    from engine.lab.interruption import Interruption  # noqa: PLC0415

    def begun(name: str) -> None:
        print(f"selftest {name}: building namespaces and clients", file=progress, flush=True)

    try:
        return work(begun)
    except Interruption as interruption:
        print("selftest: interrupted; everything is taken away", file=sys.stderr)
        return 128 + interruption.number


def _signing_key(state_dir: Path | None) -> SigningKey | None:
    """The key of a directory that was named; of the usual one only if there is one."""
    folder = (state_dir or _STATE_DIR) / "audit"
    if state_dir is None and not (folder / keys.PRIVATE_NAME).exists():
        return None
    return keys.load_private(folder)


def _verifier_key(given: str | None, state_dir: Path) -> VerifierKey:
    if given is None:
        return keys.load_public(state_dir / "audit" / keys.PUBLIC_NAME)
    if Path(given).is_file():
        return keys.load_public(Path(given))
    try:
        return VerifierKey.parse(given)
    except FormatError as error:
        raise InputError(
            f"--key is neither a verifier key nor a file with one. {error.message}", hint="See `sallyport audit key`."
        ) from error


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InputError(f"The note {path} cannot be written: {error.strerror}") from error


def _signature(signed: bytes | None, key: VerifierKey | None, path: Path | None) -> str:
    if signed is None:
        return "Not signed: there is no audit key. Name a state directory that has one with --sign-with."
    where = f"sallyport selftest verify {path}" if path else "keep it with --note FILE, or take it from --json"
    return f"Signed by {key.name if key else ''}: {where}"
