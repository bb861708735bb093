"""What `status` shows: one JSON-ready document."""

from __future__ import annotations

import asyncio
import os
import resource
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from audit.entry import Generation
from audit.log import AuditLog
from engine import __version__
from engine.abi.numbers import LOSSES
from engine.alerts.dispatcher import Dispatcher
from engine.config import Config
from engine.runtime.features import Feature
from engine.runtime.gatekeeper import Gatekeeper
from engine.runtime.resolutions import Resolutions
from engine.runtime.sources import Sources
from engine.service.machine import Machine


async def document(
    config: Config, cgroup: Path, machine: Machine, gatekeeper: Gatekeeper, log: AuditLog, alerts: Dispatcher,
    sources: Sources, resolutions: Resolutions, generation: Generation, features: list[Feature], problems: list[str],
) -> dict[str, Any]:  # fmt: skip
    """Return the status. Counting map entries walks the maps, so that is done in a thread."""
    fill = await asyncio.to_thread(lambda: machine.gate.fill() | sources.fill())
    state = log.state
    redirected, taken = machine.gate.hold_queue()
    evaluator = gatekeeper.force.policy.evaluator
    loaded = machine.loaded
    counters = {counter.name.lower(): value for counter, value in machine.gate.counters().items()}
    return {
        "state": "degraded" if problems else "healthy",
        "problems": problems,
        "version": __version__,
        "pid": os.getpid(),
        "mode": config.mode.value,
        "generation": msgspec.structs.asdict(generation),
        "policy": str(config.policy),
        "interfaces": {
            name: {"ifindex": index, "xdp": loaded.xdp.get(name, "off")} for name, index in loaded.interfaces.items()
        },
        "cgroup": str(cgroup),
        "programs": loaded.programs,
        "programs_compiled": {"because": loaded.compiled_because, "not_kept": loaded.not_kept_because},
        "start_seconds": loaded.seconds,
        "maps": {name: {"entries": entries, "max": most} for name, (entries, most) in fill.items()},
        "evaluator": {"name": evaluator.name, "restarts": getattr(evaluator, "restarts", 0)},
        "features": {one.name: {"state": one.state.value, "why": one.why} for one in features},
        "posture": config.posture.document(),
        "counters": counters,
        "sources": sources.status(),
        "dns": {"names": len(resolutions), **asdict(resolutions.observed)},
        "hold": {
            "redirected": redirected, "taken": taken, **asdict(machine.hold.counts), **asdict(gatekeeper.counts),
            "flows": len(gatekeeper.flows),
        },
        "losses": {counter.name.lower(): counters[counter.name.lower()] for counter in LOSSES}
        | {"held_frames": machine.hold.counts.lost, "log_entries": state.lost},
        "memory_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "alerts": [asdict(one) for one in alerts.statistics()],
        "audit": {
            "status": state.status, "queued": state.queued, "durable": state.durable, "lost": state.lost,
            "head": state.head.size if state.head else 0, "key": log.verifier_key,
        },
    }  # fmt: skip
