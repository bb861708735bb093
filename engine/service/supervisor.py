"""The engine: everything put together, started, kept alive, and taken down.

Start order: policy and kernel programs are prepared side by side; nothing is enforced until both stand. The programs
start in observe mode with no hold device, so that a start that fails leaves traffic as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from audit.errors import AuditError
from audit.log import AuditLog
from engine import __version__
from engine.abi.numbers import LOSSES, Counter, Present
from engine.abi.source import SOURCE_LOSSES, SourceCounter
from engine.alerts.alert import Kind
from engine.alerts.dispatcher import Dispatcher
from engine.alerts.sink import Sink
from engine.alerts.terminal import TerminalSink
from engine.alerts.webhook import WebhookSink
from engine.config import Config, NeverDeny, XdpMode
from engine.errors import KernelError, StateError, UsageError
from engine.kernel.order import Loaded, Order
from engine.kernel.pins import Pins
from engine.kernel.spawn import LoaderProcess
from engine.model.facts import Host
from engine.policy.evaluators import factory
from engine.policy.prepare import Policy, Workshop
from engine.ports import MapFullError
from engine.runtime import features
from engine.runtime.cgroups import CgroupTable, find_mount
from engine.runtime.commands import Commands
from engine.runtime.control import ControlServer
from engine.runtime.flows import FlowTable
from engine.runtime.force import highest_numbers
from engine.runtime.gatekeeper import Gatekeeper
from engine.runtime.gauge import Gauge
from engine.runtime.generations import Generations
from engine.runtime.identify import Identifier
from engine.runtime.identity import Identities
from engine.runtime.journal import Journal
from engine.runtime.orders import Orders, resolvers
from engine.runtime.owners import Owners
from engine.runtime.remotes import remotes
from engine.runtime.resolutions import CAPACITY, Resolutions
from engine.runtime.resolvers import Resolvers
from engine.runtime.sources import Sources
from engine.runtime.statefiles import StateDir
from engine.runtime.telling import Telling
from engine.runtime.troubles import Troubles
from engine.runtime.users import Users
from engine.runtime.watch import PolicyWatcher
from engine.service import machine, report
from engine.service.events import EventReader
from engine.service.interfaces import Interfaces
from engine.service.machine import Machine
from engine.service.sizes import sizes

_BEAT = 0.25
_LOOK = 0.05
"""Seconds between two looks at the ring: the kernel wakes the engine only for events that something waits for. At
50,000 events a second a look finds a tenth of what the ring holds."""
_WATCH = 1.0
_FILL_LEAST, _FILL_MOST = 1.0, 30.0
_FRAMES_AT_ONCE = 64
_FLOWS = 16384
"""About 2 KiB each: what bounds an engine that has lived long. A flow that was forgotten is judged anew."""
_EXECUTABLES = 16384
_DRAIN = 2.0


class Supervisor:
    """One engine. `run` returns when it is told to stop."""

    def __init__(self, config: Config, loader: LoaderProcess, *, leave_attached: bool = False) -> None:
        if config.policy is None:
            raise UsageError("No policy is given", hint="Name its folder with --policy DIR.")
        self._config = config
        self._folder = config.policy
        self._workshop = Workshop(factory(config.evaluator.value))
        self._loader = loader
        self._leave_attached = leave_attached
        self._pins = Pins.of(config.state_dir)
        self._mount = find_mount(Path("/proc/self/mountinfo").read_text())
        self._stop = asyncio.Event()
        self._attaching = asyncio.Lock()
        self._hangups: set[asyncio.Task[None]] = set()
        self._ends = contextlib.AsyncExitStack()
        self._seen: dict[Counter, int] = {}
        self._seen_sources: dict[SourceCounter, int] = {}
        self._written = 0
        self._detached = False

    async def run(self, ready: Callable[[str], None]) -> None:
        """Start, call `ready` with one line once every program is attached, and go on until told to stop.

        What was started is ended in the opposite order, however far the start came.
        """
        began = time.monotonic()
        async with self._ends:
            await self._start()
            self._journal.note(
                "start", interfaces=list(self._config.interfaces), seconds=round(time.monotonic() - began, 3)
            )
            ready(self._line())
            _notify("READY=1")
            await self._stop.wait()
            _notify("STOPPING=1")

    # ---- start

    async def _start(self) -> None:
        self._state = StateDir(self._config.state_dir)
        self._ends.callback(self._state.close)
        try:
            self._log = AuditLog.open(self._config.state_dir, version=__version__, mode=self._config.mode.value)
        except AuditError as error:
            raise StateError(error.message, hint=error.hint) from error
        self._ends.callback(self._close_log)
        self._ends.push_async_callback(self._workshop.close)
        policy, loaded = await self._prepare()
        self._open(policy, loaded)
        await self._begin()

    async def _prepare(self) -> tuple[Policy, Loaded]:
        """Prepare the policy and load the programs, side by side. Both or nothing."""
        config = self._config
        order = Order(
            state_dir=str(config.state_dir.resolve()),
            interfaces=list(config.interfaces),
            inside=list(config.inside),
            cgroup=str(config.cgroup or self._mount),
            mode=config.mode.value,
            pid=os.getpid(),
            xdp=config.xdp_mode.value,
            sizes=sizes(config.maps),
        )
        results = await asyncio.gather(
            self._workshop.prepare(self._folder), self._loader.load(order), return_exceptions=True
        )
        policy, loaded = results
        if isinstance(loaded, Loaded):
            # Over a gate that stood before, a start that fails leaves it standing: its verdicts go on to hold.
            self._ends.push_async_callback(self._detach, only_clean=loaded.taken_over)
        if isinstance(policy, Policy):
            self._policy = policy
            self._ends.push_async_callback(self._close_policy)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        assert isinstance(policy, Policy)  # noqa: S101 - every exception has been raised above
        assert isinstance(loaded, Loaded)  # noqa: S101
        return policy, loaded

    def _open(self, policy: Policy, loaded: Loaded) -> None:
        """Build the rooms on what the loader pinned."""
        config = self._config
        self._machine = Machine(config, self._pins, loaded)
        self._ends.callback(self._machine.close)
        gate = self._machine.gate
        self._seen = gate.counters()
        self._seen_sources = self._machine.sources.counters()
        records = self._state.executables()
        self._identities = Identities(base=max((record.id for record in records), default=0), capacity=_EXECUTABLES)
        self._identities.restore(records)
        host = Host(config.host.name or socket.gethostname(), dict(config.host.labels))
        self._resolvers = Resolvers(config.dns.resolvers)
        self._resolutions = Resolutions(CAPACITY, self._resolvers)
        identifier = Identifier(
            gate, self._identities, CgroupTable(self._mount), Users(), host, self._machine.interfaces,
            self._resolutions,
        )  # fmt: skip
        self._journal = Journal(self._log, identifier)
        self._alerts = Dispatcher(self._sinks(), window=config.alerts.window)
        self._alerts.start()
        self._ends.push_async_callback(self._alerts.close, _DRAIN)
        numbering = highest_numbers(gate)
        self._orders = Orders(gate, self._state.orders, numbering, self._mount, self._switch, self._identities.records)
        identifier.on_executable = self._new_executable
        self._generations = Generations(
            config, self._folder, self._workshop, gate, numbering, self._state, self._log
        )  # fmt: skip
        force = self._generations.first(policy, self._map_full)
        self._gatekeeper = Gatekeeper(
            gate=gate, releaser=self._machine.hold, cutter=self._machine.diag, identifier=identifier,
            owners=Owners(self._machine.diag.sockets), journal=self._journal, alerts=self._alerts,
            flows=FlowTable(_FLOWS), bounds=config.hold, posture=config.posture, orders=self._orders, force=force,
        )  # fmt: skip
        self._ends.push_async_callback(self._gatekeeper.settle)
        self._troubles = Troubles(self._alerts, self._journal, lambda: self._gatekeeper.force.number)
        self._maps_gauge = Gauge(self._troubles)
        self._sources = Sources(
            self._machine.sources, self._journal, self._alerts.submit,
            lambda index: self._machine.interfaces.get(index, ""), taken_over=loaded.taken_over,
        )  # fmt: skip
        self._telling = Telling(
            self._gatekeeper, identifier, self._journal, self._orders.reason, resolutions=self._resolutions
        )
        self._generations.attach(
            self._gatekeeper, identifier, self._journal, self._sources, self._troubles, self._make_ready, self._follow
        )

    async def _begin(self) -> None:
        """Put everything in force. The switch to the configured mode is the last write but the generation's."""
        loop = asyncio.get_running_loop()
        spared = _system_resolvers() if self._config.dns.from_resolv_conf else ()
        places = await remotes(self._folder) if self._config.management.git_remote else ()
        self._machine.gate.beat()
        self._orders.start((*self._config.never_denied(), *spared, *places))
        self._interfaces = Interfaces(
            self._config.interfaces, self._config.inside, self._config.state_dir.resolve(), self._machine,
            self._troubles, self._follow,
        )  # fmt: skip
        self._ends.push_async_callback(self._interfaces.close)
        await self._generations.begin()
        await self._follow()
        self._interfaces.start()
        self._events = EventReader(self._machine.ring, self._on_record)
        for descriptor, read in (
            (self._machine.hold.fileno(), self._on_frames),
            (self._machine.ring.fd, self._events.wake),
        ):
            loop.add_reader(descriptor, read)
            self._ends.callback(loop.remove_reader, descriptor)
        for seconds, work in ((_BEAT, self._beat), (_LOOK, self._look), (_WATCH, self._watch)):
            self._keep(self._every(seconds, work))
        self._keep(self._gauge())
        self._watcher = PolicyWatcher(self._folder, noticed=self._workshop.expect)
        await self._watcher.start()
        self._ends.push_async_callback(self._watcher.stop)
        self._keep(self._follow_policy())
        self._spared = (len(spared), len(places))
        self._cuts = self._machine.diag.can_destroy()
        print(features.text(self._features()), file=sys.stderr, end="", flush=True)
        commands = Commands(
            self._orders, self._gatekeeper, self._identities, self._journal, self._sources, self._status,
            self._generations.reload, self._follow,
        )  # fmt: skip
        control = ControlServer(self._state.control, commands)
        await control.start()
        self._ends.push_async_callback(control.stop)
        for number, action in (
            (signal.SIGTERM, self._stop.set),
            (signal.SIGINT, self._stop.set),
            (signal.SIGHUP, self._hangup),
        ):
            loop.add_signal_handler(number, action)
        self._ends.callback(self._end_events)
        # Again, so that it comes before everything else ends: an engine that is going must not hold packets.
        self._ends.push_async_callback(self._detach, only_clean=True)

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

    # ---- end

    async def _detach(self, *, only_clean: bool) -> None:
        clean = self._stop.is_set()
        if self._leave_attached and clean:
            self._state.write_executables(self._identities.records())
        elif (clean or not only_clean) and not self._detached:
            self._detached = True
            if hasattr(self, "_interfaces"):
                await self._interfaces.close()
            done = await asyncio.to_thread(machine.detach, self._pins)
            for problem in done.problems:
                print(f"sallyport: detaching: {problem}", file=sys.stderr)

    def _end_events(self) -> None:
        """Read what was told before the gate was taken down. A gate that stays tells on and on: from here on, the next
        engine."""
        self._events.end(rest=self._detached)

    async def _close_policy(self) -> None:
        # The one in force by now; the first one only where nothing followed it.
        await (self._gatekeeper.force.policy if hasattr(self, "_gatekeeper") else self._policy).close()

    def _close_log(self) -> None:
        try:
            self._log.close(left_attached=self._leave_attached)
        except AuditError as error:
            raise StateError(error.message, hint=error.hint) from error

    # ---- what comes in

    def _on_frames(self) -> None:
        frames: list[bytes] = []
        while len(frames) < _FRAMES_AT_ONCE and (frame := self._machine.hold.receive()) is not None:
            frames.append(frame)
        if frames and any(policy.reads_names for policy in self._policies()):
            # A program connects because it was answered: the answer comes before the connection that rests on it.
            self._events.after(lambda: self._take_frames(frames))
        else:
            self._take_frames(frames)

    def _take_frames(self, frames: list[bytes]) -> None:
        for frame in frames:
            self._guarded(self._gatekeeper.frame, frame, "a held frame")
        self._machine.took()

    def _on_record(self, record: bytes) -> None:
        self._guarded(self._tell, record, "an event")

    def _tell(self, record: bytes) -> None:
        if not self._sources.record(record):
            self._telling.record(record)

    def _guarded(self, handle: Callable[[bytes], None], data: bytes, what: str) -> None:
        """One bad input must not stop the ones behind it: it is dropped, which is closed, and everybody hears."""
        try:
            handle(data)
        except Exception as error:  # noqa: BLE001 - see above
            self._journal.note("failure", what=what, error=repr(error))
            self._troubles.begin(what, f"{what} could not be handled: {error!r}", Kind.LOSS)

    # ---- what goes on by itself

    def _keep(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._ends.callback(task.cancel)

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        """Do a thing again and again."""
        while True:
            await self._told(work)
            await asyncio.sleep(seconds)

    async def _told(self, work: Callable[[], Awaitable[object]]) -> None:
        """Do a thing once. A fault is told and ends nothing: without its beat the engine is absent, and without its
        eye on the policy a rule that was mended stays broken."""
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - see above
            self._troubles.begin(work.__name__, f"{work.__name__.strip('_')} failed: {error!r}", Kind.LOSS)

    async def _beat(self) -> None:
        self._machine.gate.beat()

    async def _look(self) -> None:
        self._events.wake()

    async def _watch(self) -> None:
        """Losses, expiry, and what the next engine must know."""
        lost = self._machine.hold.lost()
        if lost:
            self._troubles.loss(lost, "held frames that the engine's socket had no room for, or could not hand over")
            self._machine.took()
        for counter, value in self._machine.gate.counters().items():
            before, self._seen[counter] = self._seen[counter], value
            if counter in LOSSES and value > before:
                self._troubles.loss(value - before, f"kernel: {counter.name.lower()}")
        for source_counter, value in self._machine.sources.counters().items():
            before, self._seen_sources[source_counter] = self._seen_sources[source_counter], value
            if source_counter in SOURCE_LOSSES and value > before:
                self._troubles.loss(value - before, f"kernel: {source_counter.name.lower()}")
        self._sources.look()
        self._gatekeeper.force.sweep()
        expired = self._orders.expire()
        for order in expired:
            self._journal.note("command", action="expired", **asdict(order))
        if expired:
            await self._follow()
        if self._identities.last_id != self._written:
            self._state.write_executables(self._identities.records())
            self._written = self._identities.last_id
        self._interfaces.retry()
        state = self._log.state
        if state.status == "failing":
            self._troubles.begin("audit", f"the audit log cannot be written: {state.error}", Kind.LOSS)
        else:
            self._troubles.over("audit")

    async def _gauge(self) -> None:
        """Alarm before a map is full. Counting walks the maps, so the next look waits for fifty times as long as this
        one took."""
        while True:
            began = time.monotonic()
            await self._told(self._look_at_maps)
            took = time.monotonic() - began
            await asyncio.sleep(min(max(_FILL_LEAST, 50 * took), _FILL_MOST))

    async def _look_at_maps(self) -> None:
        self._maps_gauge.read(await asyncio.to_thread(lambda: self._machine.gate.fill() | self._sources.fill()))

    async def _follow_policy(self) -> None:
        async for _ in self._watcher:
            await self._told(self._generations.reload)

    def _hangup(self) -> None:
        self._hangups.add(task := asyncio.get_running_loop().create_task(self._told(self._generations.reload)))
        task.add_done_callback(self._hangups.discard)

    # ---- the gate's switches

    def _switch(self, present: Present) -> None:
        if self._sources_judged():
            present |= Present.SOURCE
        if self._config.inside:
            present |= Present.INSIDE
        self._machine.switch(present | self._at_ingress(), self._orders.changes)

    def _at_ingress(self) -> Present:
        """Return what there is to do with what comes in."""
        present = Present(0)
        for policy in self._policies():
            if policy.inbound is not None:
                present |= Present.INBOUND
            if policy.reads_names:
                present |= Present.DNS
        return present

    def _policies(self) -> list[Policy]:
        """The policy in force, and the one that is about to be."""
        candidate = self._generations.candidate
        return [self._gatekeeper.force.policy, *([candidate] if candidate else [])]

    def _sources_judged(self) -> bool:
        return any(policy.sources.judge for policy in self._policies())

    async def _make_ready(self) -> None:
        """Have everything attached that the candidate needs, before any of it is in force. KernelError or
        InterfaceError when that cannot be had."""
        if self._at_ingress():
            await self._interfaces.require_ingress()
        await self._follow()

    async def _follow(self) -> None:
        """Have the gate look where something stands, XDP attached while sources are denied or limited, and the program
        at ingress gone while it has nothing to do."""
        present = self._orders.present()
        self._switch(present)
        if not self._at_ingress():
            # After the switch: the program is not taken from under what is in force.
            self._interfaces.spare_ingress()
        judged = bool(present & Present.SET_SOURCE) or self._sources_judged()
        wanted = (judged or self._config.xdp_always) and self._config.xdp_mode is not XdpMode.OFF
        async with self._attaching:
            try:
                await self._machine.guard_sources(wanted=wanted)
            except KernelError as error:
                self._troubles.begin("xdp", f"sources are not judged: {error.message}", Kind.POSTURE)
            else:
                self._troubles.over("xdp")

    def _new_executable(self, number: int) -> None:
        record = self._identities.record(number)
        if record is not None:
            self._orders.executable(record)

    def _map_full(self, error: MapFullError) -> None:
        self._maps_gauge.refused(error)

    # ---- what it says of itself

    async def _status(self) -> dict[str, Any]:
        return await report.document(
            self._config, self._config.cgroup or self._mount, self._machine, self._gatekeeper, self._log,
            self._alerts, self._sources, self._resolutions, self._generations.standing, self._features(),
            self._troubles.standing,
        )  # fmt: skip

    def _features(self) -> list[features.Feature]:
        resolvers_spared, remotes_spared = self._spared
        policy = self._gatekeeper.force.policy
        loaded = self._machine.loaded
        return features.report(
            xdp=loaded.xdp, interfaces=loaded.interfaces, cgroup=self._config.cgroup or self._mount,
            mount=self._mount, headers=loaded.headers, cuts=self._cuts, polling=self._watcher.polling,
            resolvers=resolvers_spared, remotes=remotes_spared, observed=policy.reads_names,
            answering=len(self._resolvers()), inbound=policy.inbound is not None, lacking=self._interfaces.lacking,
            compiled=loaded.compiled_because, not_kept=loaded.not_kept_because,
        )  # fmt: skip

    def _line(self) -> str:
        generation = self._generations.standing
        name = (generation.commit or generation.digest)[:12]
        mark = "-dirty" if generation.dirty and generation.commit else ""
        return (
            f"sallyport: {self._config.mode.value} on {','.join(self._config.interfaces)}, "
            f"generation {generation.number} ({name}{mark}), pid {os.getpid()}"
        )


def _system_resolvers() -> tuple[NeverDeny, ...]:
    try:
        return resolvers(Path("/etc/resolv.conf").read_text())
    except OSError:
        return ()


def _notify(text: str) -> None:
    """sd_notify(3): tell systemd, if it listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        out.connect("\0" + address[1:] if address.startswith("@") else address)
        out.sendall(text.encode())
