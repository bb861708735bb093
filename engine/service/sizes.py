"""The bounds of the kernel maps, in a room of their own: the loader is told them before the engine is imported."""

from __future__ import annotations

from engine.config import Maps


def sizes(maps: Maps) -> dict[str, int]:
    """Return the configuration's bounds under the names that bpf/include/abi.h has for them."""
    return {
        "CONNECT_VERDICTS_MAX": maps.destinations,
        "DESTINATIONS_MAX": maps.never_deny + maps.destinations,
        "EVENT_BYTES": maps.ring_bytes,
        "FLOW_VERDICTS_MAX": maps.flows,
        "NAME_VERDICTS_MAX": maps.names,
        "PROCESSES_MAX": maps.processes,
        # While one policy follows another, the prefixes of both stand.
        "SOURCES_MAX": 2 * maps.sources,
        "STRATEGIES_MAX": maps.strategies,
    }
