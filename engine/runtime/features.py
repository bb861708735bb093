"""What works on this machine and what does not: stated at start and shown by `status`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path


class State(str, Enum):
    ACTIVE = "active"
    DEGRADED = "degraded"
    ABSENT = "absent"


@dataclass(frozen=True)
class Feature:
    name: str
    state: State
    why: str = ""


def report(
    *, xdp: Mapping[str, str], interfaces: Mapping[str, int], cgroup: Path, mount: Path, headers: str, cuts: bool,
    polling: bool, resolvers: int, remotes: int, observed: bool, answering: int, inbound: bool,
    lacking: Mapping[str, str], compiled: str, not_kept: str,
) -> list[Feature]:  # fmt: skip
    """Return the features in the order of a packet's way, each with the reason where it is not simply active.

    `lacking`: interfaces where what comes in cannot be judged, and why; `compiled`: why the kernel programs were
    compiled, empty where kept ones were loaded; `not_kept`: why they could not be kept.
    """
    guarded = ", ".join(interfaces)
    whole = cgroup.resolve() == mount.resolve()
    generic = [name for name, mode in xdp.items() if mode == "generic"]
    return [
        Feature("identity of sockets", State.ACTIVE)
        if whole
        else Feature("identity of sockets", State.DEGRADED, f"only of processes below {cgroup}"),
        Feature("hold and release at TC egress", State.ACTIVE, guarded)
        if guarded
        else Feature(
            "hold and release at TC egress", State.DEGRADED,
            "no interface matches the patterns yet: one that does is guarded when it appears",
        ),
        _xdp(xdp, generic),
        Feature("ending denied sockets", State.ACTIVE)
        if cuts
        else Feature(
            "ending denied sockets", State.ABSENT,
            "the kernel has no CONFIG_INET_DIAG_DESTROY: a denied program waits for its own time-out",
        ),
        Feature("names in TLS and QUIC v1, v2 hellos", State.ACTIVE),
        _names(observed, answering),
        _incoming(inbound=inbound, lacking=lacking),
        _programs(compiled, not_kept),
        Feature("kernel headers", State.ACTIVE, "of the running kernel")
        if not headers
        else Feature("kernel headers", State.ACTIVE, f"borrowed: {Path(headers).name} (no kernel structure is read)"),
        Feature("notice of policy changes", State.DEGRADED, "polling: the system gives no more file watches")
        if polling
        else Feature("notice of policy changes", State.ACTIVE),
        _spared("resolvers that no policy cuts off", resolvers, "resolv.conf names none, or the configuration says no"),
        _spared("git remote that no policy cuts off", remotes, "the policy has none, or its name does not resolve"),
    ]  # fmt: skip


def _incoming(*, inbound: bool, lacking: Mapping[str, str]) -> Feature:
    name = "what comes in"
    if not inbound:
        return Feature(name, State.ACTIVE, "judged by source alone: the policy states no inbound_verdict")
    if lacking:
        told = "; ".join(f"{interface}: {why}" for interface, why in lacking.items())
        return Feature(name, State.DEGRADED, f"not judged by the policy's rules on {told}")
    return Feature(name, State.ACTIVE, "judged by the policy's rules")


def _names(observed: bool, answering: int) -> Feature:
    name = "names that DNS answered (dest_names)"
    if not observed:
        return Feature(name, State.ACTIVE, "observed when a policy reads them: none does")
    if not answering:
        return Feature(name, State.ABSENT, "no resolver is known: name them under [dns] in the configuration")
    return Feature(name, State.ACTIVE, f"answers of {answering} resolvers")


def _programs(compiled: str, not_kept: str) -> Feature:
    name = "kernel programs"
    if not_kept:
        return Feature(name, State.DEGRADED, f"compiled, and at the next start again: {not_kept}")
    return Feature(name, State.ACTIVE, f"compiled: {compiled}" if compiled else "kept from an earlier start")


def _xdp(xdp: Mapping[str, str], generic: list[str]) -> Feature:
    name = "sources judged at XDP"
    if generic:
        return Feature(name, State.DEGRADED, f"generic, after the driver, on {', '.join(generic)}")
    if all(mode == "off" for mode in xdp.values()):
        return Feature(name, State.ACTIVE, "attached while sources are denied or limited: none is")
    return Feature(name, State.ACTIVE)


def _spared(name: str, count: int, why: str) -> Feature:
    return Feature(name, State.ACTIVE, f"{count} addresses") if count else Feature(name, State.ABSENT, why)


def text(features: list[Feature]) -> str:
    """Return the report for a person."""
    width = max(len(feature.name) for feature in features)
    lines = [f"{feature.name:{width}}  {feature.state.value:8}  {feature.why}".rstrip() for feature in features]
    return "\n".join(lines) + "\n"
