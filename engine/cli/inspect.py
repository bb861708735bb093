"""`sallyport inspect`: the engine's own parsers on a capture file."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

from engine.errors import EXIT_OK, InputError
from engine.model import net
from engine.model.decision import Decision, Stage, Verdict
from engine.model.facts import Clock, Dest, Direction, Event, Facts, Source, Transport
from engine.protocols.capture import CaptureRecord, records
from engine.protocols.survey import Sighting, Survey

Decide = Callable[[Facts, Stage], Decision]

_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DESCRIPTION = """\
Show every TLS and QUIC client hello of a capture (pcap or pcapng, gzip too; "-" is standard input), read by the
parsers that the gate uses. With --policy, say what the policy would decide about it.
"""
_EPILOG = """\
example:
  sallyport inspect traffic.pcap --policy policies --json

With --json, one object a line: transport (tcp, quic), src, sport, dst, dport, sni ("" when there is none; as it was
sent when it is no host name), state, reason, alpn, versions, ech, ja4, late (other data came first), packet, time
(UTC, null when the capture has none), vlan, encap; with --policy also decision and reasons. Facts that a capture
does not hold, such as the executable, are unknown to the policy.
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line's parser."""
    parser = subparsers.add_parser(
        "inspect",
        help="show the client hellos of a capture file",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="the capture")
    parser.add_argument("--policy", metavar="DIR", type=Path, help="a policy folder to decide with")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Handle the command: hellos on stdout, totals on stderr. InputError once what was whole has been
    shown."""
    decide = load_policy(args.policy) if args.policy else None
    if args.file == "-":
        return inspect(Survey(), records(sys.stdin.buffer, "standard input"), decide, as_json=args.json)
    path = Path(args.file)
    try:
        stream = path.open("rb")
    except OSError as error:
        raise InputError(
            f"{path} cannot be opened: {error.strerror}", hint="Give the path of a capture file."
        ) from error
    with stream:
        return inspect(Survey(), records(stream, str(path)), decide, as_json=args.json)


def load_policy(folder: Path) -> Decide:
    """Return the policy's decision function. Raises PolicyError."""
    # The evaluator costs more memory and time than the parsers: only who asks for it pays.
    from engine.policy.offline import load  # noqa: PLC0415

    return load(folder)


def inspect(
    survey: Survey,
    captured: Iterator[CaptureRecord],
    decide: Decide | None,
    *,
    as_json: bool,
    out: TextIO | None = None,
    err: TextIO | None = None,
) -> int:
    """Show every hello of the records. Raises their InputError after what was whole has been shown."""
    out = out or sys.stdout
    err = err or sys.stderr
    totals: Counter[str] = Counter()
    if not as_json:
        print(_line(_HEADINGS), file=out)

    def show(sightings: list[Sighting]) -> None:
        for sighting in sightings:
            totals[sighting.reading.state.value] += 1
            entry = describe(sighting, decide)
            print(json.dumps(entry) if as_json else _line(_columns(entry)), file=out)

    broken: InputError | None = None
    try:
        for record in captured:
            show(survey.feed(record))
    except InputError as error:
        broken = error
    show(survey.finish())
    out.flush()
    print(_summary(survey, totals), file=err)
    if broken is not None:
        raise broken
    return EXIT_OK


def describe(sighting: Sighting, decide: Decide | None = None) -> dict[str, Any]:
    """Return the JSON-ready description of one hello; the keys are explained in the command's help."""
    reading = sighting.reading
    sni = reading.name.value or reading.raw_name.decode("utf-8", "backslashreplace")
    entry: dict[str, Any] = {
        "transport": sighting.transport,
        "src": str(sighting.src),
        "sport": sighting.flow[1],
        "dst": str(sighting.dst),
        "dport": sighting.flow[3],
        "sni": sni,
        "state": reading.state.value,
        "reason": reading.reason,
        "alpn": list(reading.alpn),
        "versions": list(reading.versions),
        "ech": reading.name.ech,
        "ja4": reading.ja4,
        "late": sighting.late,
        "packet": sighting.packet,
        "time": _time(sighting.time_ns),
        "vlan": list(sighting.vlans),
        "encap": list(sighting.encaps),
    }
    if decide is not None:
        decision = judge(sighting, decide)
        entry["decision"] = decision.verdict.value
        entry["reasons"] = [{"rule": why.rule, "message": why.message} for why in decision.reasons]
    return entry


def judge(sighting: Sighting, decide: Decide) -> Decision:
    """Ask the policy as the engine would: at connect, and with the hello when connect leaves it open."""
    reading = sighting.reading
    moment = datetime.fromtimestamp(sighting.time_ns // 10**9, timezone.utc).astimezone()
    transport = Transport.TCP if sighting.transport == "tcp" else Transport.UDP
    dest = Dest(str(sighting.dst), sighting.flow[3], transport, net.locality(sighting.dst))
    clock = Clock(moment.hour, _WEEKDAYS[moment.weekday()])
    source = Source(str(sighting.src), sighting.flow[1])
    connect = Facts(Event.CONNECT, Direction.EGRESS, dest, clock, source=source)
    decision = decide(connect, Stage.CONNECT)
    if decision.verdict is not Verdict.UNDECIDED:
        return decision
    payload = Facts(
        Event.LATE if sighting.late else Event.PAYLOAD,
        Direction.EGRESS,
        dest,
        clock,
        source=source,
        name=reading.name,
        hello=reading.hello(),
    )
    return decide(payload, Stage.PAYLOAD)


_HEADINGS = ("packet", "time", "flow", "state", "name", "alpn", "versions", "ja4", "decision")
_WIDTHS = (7, 27, 46, 11, 32, 12, 14, 36, 0)


def _columns(entry: dict[str, Any]) -> tuple[str, ...]:
    source, dest = (_endpoint(entry[host], entry[port]) for host, port in (("src", "sport"), ("dst", "dport")))
    why = "; ".join(f"{reason['rule']}: {reason['message']}" for reason in entry.get("reasons", ()))
    return (
        str(entry["packet"]),
        entry["time"] or "-",
        f"{entry['transport']} {source} > {dest}",
        entry["state"] + ("+ech" if entry["ech"] else ""),
        printable(entry["sni"]) or "-",
        printable(",".join(entry["alpn"])) or "-",
        ",".join(entry["versions"]) or "-",
        entry["ja4"] or "-",
        printable(f"{entry.get('decision', '')} {why or entry['reason']}".strip()),
    )


def _line(columns: tuple[str, ...]) -> str:
    return "  ".join(text.ljust(width) for text, width in zip(columns, _WIDTHS, strict=True)).rstrip()


def printable(text: str) -> str:
    """Return text that is safe to show: anything but printable ASCII as an escape (\\x1b, \\u202e), for the
    names in a capture are the sender's words."""
    return text.encode("unicode_escape").decode("ascii")


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _time(time_ns: int) -> str | None:
    if not time_ns:
        return None
    try:
        seconds = datetime.fromtimestamp(time_ns // 10**9, timezone.utc)
    except (OverflowError, ValueError, OSError):
        return None
    return f"{seconds:%Y-%m-%dT%H:%M:%S}.{time_ns % 10**9 // 1000:06}Z"


def _summary(survey: Survey, totals: Counter[str]) -> str:
    states = ", ".join(f"{count} {state}" for state, count in sorted(totals.items()))
    text = f"packets: {survey.packets}, client hellos: {sum(totals.values())}"
    if states:
        text += f" ({states})"
    if survey.refusals:
        text += "; not read: " + ", ".join(f"{count} {why}" for why, count in sorted(survey.refusals.items()))
    if survey.unknown_links:
        text += " (link types " + ", ".join(str(link) for link in sorted(survey.unknown_links)) + ")"
    return text
