"""The engine: everything put together, started, kept alive, and taken down.

Start order: policy and kernel programs are prepared side by side; nothing is enforced until both stand. The programs
start in observe mode with no hold device, so that a start that fails leaves traffic as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from audit.entry import Generation
from audit.errors import AuditError
from audit.log import AuditLog
from engine import __version__
from engine.abi.numbers import LOSSES, Counter, Mode, PostureBit, Present
from engine.abi.records import Config as GateConfig
from engine.alerts.alert import Alert, Kind, Severity
from engine.alerts.dispatcher import Dispatcher
from engine.alerts.sink import Sink
from engine.alerts.terminal import TerminalSink
from engine.alerts.webhook import WebhookSink
from engine.config import Config, EvaluatorKind, Maps, NeverDeny, XdpMode
from engine.config import Mode as ConfigMode
from engine.errors import EvaluatorError, PolicyError, SallyportError, StateError, UsageError
from engine.kernel.gate import KernelGate
from engine.kernel.hold import Hold
from engine.kernel.order import Detached, Loaded, Order
from engine.kernel.pins import Pins
from engine.kernel.ring import Ring, open_ring
from engine.kernel.sockdiag import SockDiag
from engine.kernel.spawn import LoaderProcess
from engine.model.decision import Verdict
from engine.model.facts import Host
from engine.model.posture import Condition, Posture
from engine.policy.bundle import Bundle
from engine.policy.evaluator import Evaluator
from engine.policy.prepare import Policy, prepare
from engine.ports import MapFullError
from engine.runtime import features
from engine.runtime.cgroups import CgroupTable, find_mount
from engine.runtime.control import ControlServer
from engine.runtime.flows import FlowTable
from engine.runtime.force import Force, highest_numbers
from engine.runtime.gatekeeper import Gatekeeper
from engine.runtime.identify import Identifier
from engine.runtime.identity import Identities
from engine.runtime.journal import Journal
from engine.runtime.orders import Order as PersonsOrder
from engine.runtime.orders import Orders, resolvers
from engine.runtime.owners import Owners
from engine.runtime.reload import Switch
from engine.runtime.remotes import remotes
from engine.runtime.statefiles import StateDir
from engine.runtime.telling import Telling
from engine.runtime.users import Users
from engine.runtime.watch import PolicyWatcher

_BEAT = 0.25
_HEARTBEAT_MAX = 2.0
"""Seconds without a heartbeat after which the gate counts the engine as absent: eight beats."""
_HOLD_BYTES = 32 << 20
_FRAMES_AT_ONCE = 64
_EVENTS_AT_ONCE = 256
EVENT_LOOK = 0.05
"""Seconds between two looks at the ring: the kernel wakes the engine only for events that something waits for. At
50,000 events a second a look finds a tenth of what the ring holds."""
_FLOWS = 65536
_MAP_ALARM = 0.8


class Supervisor:
    """One engine. `run` returns when it is told to stop."""

    def __init__(self, config: Config, loader: LoaderProcess, *, leave_attached: bool = False) -> None:
        if config.policy is None:
            raise UsageError("No policy is given", hint="Name its folder with --policy DIR.")
        self._config = config
        self._loader = loader
        self._folder = config.policy
        self._leave_attached = leave_attached
        self._pins = Pins.of(config.state_dir)
        self._cgroup_mount = find_mount(Path("/proc/self/mountinfo").read_text())
        self._stop = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._sources = asyncio.Lock()
        self._hangups: set[asyncio.Task[dict[str, Any]]] = set()
        self._problems: dict[str, str] = {}
        self._seen: dict[Counter, int] = {}
        self._last_beat = 0.0
        self._longest_pause = 0.0

    # ---- life

    async def run(self, ready: Callable[[str], None]) -> None:
        """Start, call `ready` with one line once every program is attached, and go on until told to stop."""
        began = time.monotonic()
        self._state = StateDir(self._config.state_dir)
        try:
            self._log = AuditLog.open(self._config.state_dir, version=__version__, mode=self._config.mode.value)
        except AuditError as error:
            raise StateError(error.message, hint=error.hint) from error
        clean = False
        try:
            await self._start()
            took = time.monotonic() - began
            self._journal.note("start", interfaces=list(self._config.interfaces), seconds=round(took, 3))
            ready(self._line())
            _notify("READY=1")
            await self._stop.wait()
            _notify("STOPPING=1")
            clean = True
        finally:
            await self._end(clean=clean)

    async def _start(self) -> None:
        loading = asyncio.create_task(self._load_programs())
        try:
            policy = await prepare(self._folder, self._evaluator)
        except BaseException:
            # The loader must not be left behind half way: let it finish, then take down what it attached.
            await asyncio.gather(loading, return_exceptions=True)
            if not loading.cancelled() and loading.exception() is None and not loading.result().taken_over:
                await asyncio.to_thread(_detach, self._pins)
            raise
        try:
            self._loaded = await loading
        except BaseException:
            await policy.close()
            raise
        try:
            self._open(policy)
            await self._begin(policy)
        except BaseException:
            await policy.close()
            if not self._loaded.taken_over:
                await asyncio.to_thread(_detach, self._pins)
            raise

    def _evaluator(self) -> Evaluator:
        if self._config.evaluator is EvaluatorKind.OPA:
            from engine.policy.opa import OpaEvaluator  # noqa: PLC0415 - aiohttp is 20 MiB that only opa pays

            return OpaEvaluator(binary=_opa_binary())
        from engine.policy.embedded import EmbeddedEvaluator  # noqa: PLC0415

        return EmbeddedEvaluator()

    async def _load_programs(self) -> Loaded:
        config = self._config
        mount = self._cgroup_mount
        order = Order(
            state_dir=str(config.state_dir.resolve()),
            interfaces=list(config.interfaces),
            cgroup=str(config.cgroup or mount),
            mode=config.mode.value,
            pid=os.getpid(),
            xdp=config.xdp_mode.value,
            sizes=_sizes(config.maps),
        )
        return await self._loader.load(order)

    def _open(self, policy: Policy) -> None:
        """Open what the loader pinned and build the rooms on it."""
        config, pins = self._config, self._pins
        self._gate = KernelGate(pins.maps)
        self._hold = Hold(pins.held_device, _HOLD_BYTES)
        self._taken_before = self._gate.hold_queue()[0]
        self._ring: Ring = open_ring(pins.maps / "events")
        self._diag = SockDiag()
        self._interfaces = {index: name for name, index in self._loaded.interfaces.items()}
        records = self._state.executables()
        self._identities = Identities(base=max((record.id for record in records), default=0))
        self._identities.restore(records)
        host = Host(config.host.name or socket.gethostname(), dict(config.host.labels))
        self._identifier = Identifier(
            self._gate, self._identities, CgroupTable(self._cgroup_mount), Users(), host, self._interfaces
        )
        self._journal = Journal(self._log, self._identifier)
        self._alerts = Dispatcher(self._sinks(), window=config.alerts.window)
        self._alerts.start()
        self._numbering = highest_numbers(self._gate)
        self._orders = Orders(
            self._gate, self._state.orders, self._numbering, self._cgroup_mount, self._set_present,
            self._identities.records,
        )  # fmt: skip
        self._identifier.on_executable = self._new_executable
        standing = self._state.standing()
        number = self._gate.generation()
        same = standing is not None and (standing.number, standing.digest, standing.mode) == (
            number, policy.bundle.digest, config.mode.value,
        )  # fmt: skip
        force = self._force(number if same else number + 1, policy)
        if same:
            force.restore()
        self._restored = same
        self._gatekeeper = Gatekeeper(
            gate=self._gate, releaser=self._hold, cutter=self._diag, identifier=self._identifier,
            owners=Owners(self._diag.sockets), journal=self._journal, alerts=self._alerts,
            flows=FlowTable(_FLOWS), bounds=config.hold, posture=config.posture, orders=self._orders, force=force,
        )  # fmt: skip
        self._telling = Telling(self._gatekeeper, self._identifier, self._journal, self._orders.reason)

    def _sinks(self) -> list[Sink]:
        alerts = self._config.alerts
        sinks: list[Sink] = [TerminalSink()] if alerts.terminal else []
        hook = alerts.webhook
        if hook is not None:
            sinks.append(
                WebhookSink.open(
                    hook.url, token_file=hook.token_file, hmac_key_file=hook.hmac_key_file, ca_file=hook.ca_file,
                    timeout=hook.timeout,
                )
            )  # fmt: skip
        return sinks

    def _force(self, number: int, policy: Policy) -> Force:
        posture = self._config.posture[Condition.EVALUATOR_FAILED]
        judge = policy.judge(posture=Verdict.ALLOW if posture.passes else Verdict.DENY)
        return Force(number, policy, judge, self._gate, self._numbering, self._map_full)

    async def _begin(self, policy: Policy) -> None:
        """Put everything in force. The switch to the configured mode is the last write but the generation's."""
        loop = asyncio.get_running_loop()
        force = self._gatekeeper.force
        spared = _system_resolvers() if self._config.dns.from_resolv_conf else ()
        places = await remotes(self._folder) if self._config.management.git_remote else ()
        self._orders.start((*self._config.never_denied(), *spared, *places))
        force.begin()
        if not self._restored:
            force.deny_sources(policy.source_deny)
        self._in_force(force)
        self._gate.beat()
        self._set_present(self._orders.present())
        self._gate.set_generation(force.number)
        await self._follow_sources()
        self._log_generation(force.number, force.policy.bundle)
        loop.add_reader(self._hold.fileno(), self._on_frames)
        loop.add_reader(self._ring.fd, self._on_events)
        self._periodic = [loop.create_task(one) for one in (self._beating(), self._watching(), self._looking())]
        self._watcher = PolicyWatcher(self._folder)
        await self._watcher.start()
        self._periodic.append(loop.create_task(self._follow_policy()))
        self._spared = (len(spared), len(places))
        self._cuts = self._diag.can_destroy()
        print(features.text(self._features()), file=sys.stderr, end="", flush=True)
        self._control = ControlServer(self._state.control, self._command)
        await self._control.start()
        for number, action in (
            (signal.SIGTERM, self._stop.set),
            (signal.SIGINT, self._stop.set),
            (signal.SIGHUP, self._hangup),
        ):
            loop.add_signal_handler(number, action)
        self._journal.note(
            "policy", number=force.number, digest=policy.bundle.digest, commit=policy.bundle.commit or "",
            rules=[rule.name for rule in policy.rules], restored=self._restored,
        )  # fmt: skip

    async def _end(self, *, clean: bool) -> None:
        loop = asyncio.get_running_loop()
        if hasattr(self, "_gatekeeper"):
            loop.remove_reader(self._hold.fileno())
            loop.remove_reader(self._ring.fd)
            for task in getattr(self, "_periodic", []):
                task.cancel()
            if hasattr(self, "_watcher"):
                await self._watcher.stop()
            if hasattr(self, "_control"):
                await self._control.stop()
            await self._gatekeeper.settle()
            if clean and not self._leave_attached:
                done = await asyncio.to_thread(_detach, self._pins)
                for problem in done.problems:
                    self._journal.note("failure", what="detaching", error=problem)
            elif clean:
                self._state.write_executables(self._identities.records())
            await self._gatekeeper.force.policy.close()
            await self._alerts.close(2.0)
            self._hold.close()
            self._diag.close()
            self._ring.close()
            self._gate.close()
        try:
            self._log.close(left_attached=self._leave_attached)
        except AuditError as error:
            raise StateError(error.message, hint=error.hint) from error
        finally:
            self._state.close()

    # ---- what comes in

    def _on_frames(self) -> None:
        for _ in range(_FRAMES_AT_ONCE):
            frame = self._hold.receive()
            if frame is None:
                break
            self._guarded(self._gatekeeper.frame, frame, "a held frame")
        self._gate.take(self._taken_before + self._hold.counts.taken + self._hold.counts.lost)

    def _on_events(self) -> None:
        # In slices: a flood of events must not keep a held packet waiting.
        if self._ring.drain(self._on_record, _EVENTS_AT_ONCE) == _EVENTS_AT_ONCE:
            asyncio.get_running_loop().call_soon(self._on_events)

    async def _looking(self) -> None:
        while True:
            await asyncio.sleep(EVENT_LOOK)
            self._on_events()

    def _on_record(self, record: bytes) -> None:
        self._guarded(self._telling.record, record, "an event")

    def _guarded(self, handle: Callable[[bytes], None], data: bytes, what: str) -> None:
        """One bad input must not stop the ones behind it: it is dropped, which is closed, and everybody hears."""
        try:
            handle(data)
        except Exception as error:  # noqa: BLE001 - see above
            self._journal.note("failure", what=what, error=repr(error))
            self._problem(what, f"{what} could not be handled: {error!r}", Kind.LOSS)

    async def _beating(self) -> None:
        while True:
            self._gate.beat()
            now = time.monotonic()
            if self._last_beat:
                self._longest_pause = max(self._longest_pause, now - self._last_beat)
            self._last_beat = now
            await asyncio.sleep(_BEAT)

    async def _watching(self) -> None:
        """Once a second: losses, expiry, fill."""
        written = 0
        while True:
            await asyncio.sleep(1.0)
            lost = self._hold.lost()
            if lost:
                self._loss(lost, "held frames did not fit the socket's buffer")
                self._gate.take(self._taken_before + self._hold.counts.taken + self._hold.counts.lost)
            for counter, value in self._gate.counters().items():
                before = self._seen.get(counter, 0)
                self._seen[counter] = value
                if counter in LOSSES and value > before:
                    self._loss(value - before, f"kernel: {counter.name.lower()}")
            self._gatekeeper.force.sweep()
            expired = self._orders.expire()
            for order in expired:
                self._journal.note("command", action="expired", **asdict(order))
            if expired:
                await self._follow_sources()
            if self._identities.last_id != written:
                written = self._identities.last_id
                with contextlib.suppress(StateError):
                    self._state.write_executables(self._identities.records())
            state = self._log.state
            if state.status == "failing":
                self._problem("audit", f"the audit log cannot be written: {state.error}", Kind.LOSS)
            else:
                self._problems.pop("audit", None)

    def _loss(self, count: int, reason: str) -> None:
        self._journal.note("gap", count=count, reason=reason)
        self._alert(Kind.LOSS, Severity.WARNING, f"{count} lost: {reason}")

    def _map_full(self, error: MapFullError) -> None:
        self._problem(f"map {error.map_name}", error.message, Kind.MAP_FULL)

    def _problem(self, key: str, text: str, kind: Kind) -> None:
        if self._problems.get(key) != text:
            self._problems[key] = text
            self._alert(kind, Severity.CRITICAL, text)

    def _alert(self, kind: Kind, severity: Severity, summary: str, **details: Any) -> None:
        number = self._gatekeeper.force.number
        self._alerts.submit(Alert(time.time_ns(), kind, severity, summary, details, generation=number))
        self._journal.note("alert", kind=kind.value, severity=severity.value, summary=summary)

    # ---- policy

    async def _follow_policy(self) -> None:
        async for _ in self._watcher:
            await self._reload()

    def _hangup(self) -> None:
        self._hangups.add(task := asyncio.get_running_loop().create_task(self._reload()))
        task.add_done_callback(self._hangups.discard)

    async def _reload(self) -> dict[str, Any]:
        """Prepare what the folder holds now and put it in force. Whatever fails leaves the generation as it is."""
        async with self._reloading:
            old = self._gatekeeper.force
            try:
                policy = await prepare(self._folder, self._evaluator)
            except (PolicyError, EvaluatorError) as error:
                self._problem("policy", f"the policy was refused, generation {old.number} stays: {error.message}",
                              Kind.POLICY_BROKEN)  # fmt: skip
                self._journal.note("policy", refused=True, error=error.diagnostics(), number=old.number)
                return {"applied": False, "number": old.number, "error": error.diagnostics()}
            self._problems.pop("policy", None)
            if policy.bundle.digest == old.policy.bundle.digest:
                unchanged = policy.bundle.commit == old.policy.bundle.commit
                unchanged = unchanged and policy.bundle.dirty == old.policy.bundle.dirty
                await policy.close()
                if not unchanged:
                    # The same rules under another commit: the log says so, and nothing needs to be judged again.
                    self._log_generation(old.number, policy.bundle)
                return {"applied": False, "number": old.number, "unchanged": True}
            force = self._force(old.number + 1, policy)
            try:
                switch = Switch(self._gate, self._gatekeeper, self._identifier, self._config.mode)
                self._in_force(force)
                done = await switch.to(force)
            except SallyportError as error:
                await policy.close()
                self._in_force(old)
                self._problem("policy", f"the policy could not be put in force: {error.message}", Kind.POLICY_BROKEN)
                return {"applied": False, "number": old.number, "error": error.diagnostics()}
            self._set_present(self._orders.present())
            await self._follow_sources()
            self._log_generation(force.number, force.policy.bundle)
            self._journal.note(
                "policy", number=force.number, digest=policy.bundle.digest, commit=policy.bundle.commit or "",
                replaced=old.policy.bundle.digest, judged=done.judged, cut=done.cut, seconds=round(done.seconds, 4),
            )  # fmt: skip
            return {"applied": True, "number": force.number, "judged": done.judged, "cut": done.cut}

    def _in_force(self, force: Force) -> None:
        self._identifier.hashing = force.policy.reads_field("exe.sha256")
        self._identifier.ancestry = any("process" in rule.scope for rule in force.policy.rules)

    def _log_generation(self, number: int, bundle: Bundle) -> None:
        """Say in the log, and to the next engine, what is in force from now on."""
        self._generation = Generation(number, bundle.digest, bundle.commit or "", bundle.dirty)
        self._log.generation = self._generation
        self._state.write_standing(number, bundle.digest, self._config.mode.value)

    # ---- the gate's switches

    def _set_present(self, present: Present) -> None:
        if self._gatekeeper.force.policy.source_deny:
            present |= Present.SOURCE
        mode = Mode.ENFORCE if self._config.mode is ConfigMode.ENFORCE else Mode.OBSERVE
        self._gate.set_config(
            GateConfig(
                mode, self._loaded.hold_ifindex, int(present), _open_bits(self._config.posture),
                self._config.hold.queue, int(_HEARTBEAT_MAX * 1e9),
            )
        )  # fmt: skip

    async def _follow_sources(self) -> None:
        """Have the XDP program attached while a source is denied, and only then."""
        config = self._config
        denied = self._orders.present() & Present.SET_SOURCE or self._gatekeeper.force.policy.source_deny
        wanted = bool(denied) and config.xdp_mode is not XdpMode.OFF
        async with self._sources:
            if wanted == any(mode != "off" for mode in self._loaded.xdp.values()):
                return
            order = {
                "state_dir": str(config.state_dir.resolve()), "interfaces": list(config.interfaces),
                "mode": config.xdp_mode.value, "attach": wanted,
            }  # fmt: skip
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "engine.kernel.xdp", stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            out, _ = await child.communicate(json.dumps(order).encode())
            answer = json.loads(out or b"{}")
            if "xdp" in answer:
                self._loaded.xdp.update(answer["xdp"])
                self._problems.pop("xdp", None)
            else:
                why = answer.get("error", "the process that attaches it ended without an answer")
                self._problem("xdp", f"denied sources are not dropped: {why}", Kind.POSTURE)

    def _new_executable(self, number: int) -> None:
        record = self._identities.record(number)
        if record is not None:
            self._orders.executable(record)

    # ---- commands

    async def _command(self, request: dict[str, Any]) -> Any:
        command = request["command"]
        if command == "status":
            return await self._status()
        if command == "reload":
            return await self._reload()
        if command == "list":
            return [asdict(order) for order in self._orders.of_kind(request["kind"])] + (
                self._standing_verdicts() if request["kind"] == "verdict" else []
            )
        if command == "set":
            order = PersonsOrder.make(request["order"])
            self._orders.set(order)
            await self._follow_sources()
            cut = self._gatekeeper.obey(order) if order.kind == "verdict" else 0
            self._journal.note("command", action="set", cut=cut, **asdict(order))
            return {"set": asdict(order), "cut": cut}
        if command == "clear":
            cleared = self._clear(request)
            await self._follow_sources()
            return cleared
        raise UsageError(f"The engine knows no command {command!r}")

    def _clear(self, request: dict[str, Any]) -> dict[str, Any]:
        if request.get("all"):
            selectors = [order.selector for order in self._orders.of_kind(request["kind"])]
        else:
            selectors = [PersonsOrder.make(request["order"]).selector]
        cleared = sum(self._orders.clear(selector) for selector in selectors)
        if not cleared and not request.get("all"):
            raise UsageError("There is no such setting", hint="`list` shows what is set.")
        self._journal.note("command", action="clear", kind=request["kind"], selectors=[list(one) for one in selectors])
        return {"cleared": cleared}

    def _standing_verdicts(self) -> list[dict[str, Any]]:
        return self._gatekeeper.force.listing(self._identities.record)

    async def _status(self) -> dict[str, Any]:
        gate = self._gate
        fill = await asyncio.to_thread(gate.fill)
        for name, (entries, most) in fill.items():
            if entries >= _MAP_ALARM * most and name not in ("flow_verdicts", "held", "processes"):
                self._problem(f"map {name}", f"the map {name} is {100 * entries // most} % full", Kind.MAP_FULL)
        state = self._log.state
        redirected, taken = gate.hold_queue()
        evaluator = self._gatekeeper.force.policy.evaluator
        counters = {counter.name.lower(): value for counter, value in gate.counters().items()}
        return {
            "state": "degraded" if self._problems else "healthy",
            "problems": list(self._problems.values()),
            "version": __version__,
            "pid": os.getpid(),
            "mode": self._config.mode.value,
            "generation": msgspec.structs.asdict(self._generation),
            "policy": str(self._folder),
            "interfaces": {
                name: {"ifindex": index, "xdp": self._loaded.xdp.get(name, "off")}
                for name, index in self._loaded.interfaces.items()
            },
            "cgroup": str(self._config.cgroup or self._cgroup_mount),
            "programs": self._loaded.programs,
            "start_seconds": self._loaded.seconds,
            "maps": {name: {"entries": entries, "max": most} for name, (entries, most) in fill.items()},
            "evaluator": {"name": evaluator.name, "restarts": getattr(evaluator, "restarts", 0)},
            "features": {one.name: {"state": one.state.value, "why": one.why} for one in self._features()},
            "posture": self._config.posture.document(),
            "counters": counters,
            "hold": {
                "redirected": redirected, "taken": taken, **asdict(self._hold.counts),
                **asdict(self._gatekeeper.counts), "flows": len(self._gatekeeper.flows),
            },
            "losses": {counter.name.lower(): counters[counter.name.lower()] for counter in LOSSES}
            | {"held_frames": self._hold.counts.lost, "log_entries": state.lost},
            "events": self._telling.handled,
            "longest_pause_ms": round(1000 * self._longest_pause),
            "memory_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "alerts": [asdict(one) for one in self._alerts.statistics()],
            "audit": {
                "status": state.status, "queued": state.queued, "durable": state.durable, "lost": state.lost,
                "head": state.head.size if state.head else 0, "key": self._log.verifier_key,
            },
        }  # fmt: skip

    def _features(self) -> list[features.Feature]:
        resolvers_spared, remotes_spared = self._spared
        return features.report(
            xdp=self._loaded.xdp, interfaces=self._loaded.interfaces, cgroup=self._config.cgroup or self._cgroup_mount,
            mount=self._cgroup_mount, headers=self._loaded.headers, cuts=self._cuts, polling=self._watcher.polling,
            resolvers=resolvers_spared, remotes=remotes_spared,
        )  # fmt: skip

    def _line(self) -> str:
        generation = self._generation
        name = (generation.commit or generation.digest)[:12]
        mark = "-dirty" if generation.dirty and generation.commit else ""
        return (
            f"sallyport: {self._config.mode.value} on {','.join(self._config.interfaces)}, "
            f"generation {generation.number} ({name}{mark}), pid {os.getpid()}"
        )


def _detach(pins: Pins) -> Detached:
    # Netlink costs 19 MiB, and the engine needs it only when it goes.
    from engine.kernel.detach import detach  # noqa: PLC0415

    return detach(pins)


def _sizes(maps: Maps) -> dict[str, int]:
    """The configuration's bounds under the names that bpf/include/abi.h has for them."""
    return {
        "CONNECT_VERDICTS_MAX": maps.destinations,
        "DESTINATIONS_MAX": maps.never_deny + maps.destinations,
        "EVENT_BYTES": maps.ring_bytes,
        "FLOW_VERDICTS_MAX": maps.flows,
        "NAME_VERDICTS_MAX": maps.names,
        "PROCESSES_MAX": maps.processes,
        "SOURCES_MAX": maps.sources,
        "STRATEGIES_MAX": maps.strategies,
    }


def _open_bits(posture: Posture) -> int:
    bits = {
        Condition.ENGINE_ABSENT: PostureBit.ENGINE_ABSENT,
        Condition.HOLD_QUEUE_FULL: PostureBit.HOLD_FULL,
        Condition.MAP_FULL: PostureBit.MAP_FULL,
        Condition.PARSER_MALFORMED: PostureBit.MALFORMED,
        Condition.FRAGMENT: PostureBit.FRAGMENT,
    }
    return int(sum(bit for condition, bit in bits.items() if posture[condition].passes))


def _system_resolvers() -> tuple[NeverDeny, ...]:
    try:
        return resolvers(Path("/etc/resolv.conf").read_text())
    except OSError:
        return ()


def _opa_binary() -> str:
    beside = Path(sys.executable).parent / "opa"
    return str(beside) if beside.exists() else "opa"


def _notify(text: str) -> None:
    """sd_notify(3): tell systemd, if it listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        out.connect("\0" + address[1:] if address.startswith("@") else address)
        out.sendall(text.encode())
