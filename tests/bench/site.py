"""Where the figures are taken: two namespaces joined by two equal wires, of which one has a gate.

    client                                             server
    gate0  198.18.0.1   <- veth, guarded ->  gate1  198.18.0.2 and all of 198.18.0.0/16
    bare0  198.19.0.1   <- veth, bare    ->  bare1  198.19.0.2 and all of 198.19.0.0/16

The addresses are those that RFC 2544 set aside for benchmarks. A bare client also runs outside of the guarded control
group, so that no program of the gate sees anything of it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from engine.errors import PrivilegeError
from engine.kernel.pins import BPFFS
from engine.lab.errors import LabError
from engine.lab.gate import Gate
from engine.lab.groups import Groups
from engine.lab.interruption import undisturbed
from engine.lab.journal import Journal, Plan
from engine.lab.place import ROOT, Place
from engine.lab.servers import make_certificates
from engine.lab.topology import Namespace
from engine.lab.undo import undo, undo_abandoned
from engine.runtime.cgroups import find_mount

GUARDED, BARE = "198.18.0.2", "198.19.0.2"
DENIED_SUFFIX = "denied.bench.example"
"""What the policy denies, and everything below it."""
NAMES_MOST = 1 << 19
SOURCES_MOST = 1 << 20
_WIRES = (("gate", "198.18.0"), ("bare", "198.19.0"))


class _Gate(Gate):
    """A gate whose maps hold what the rows fill them with."""

    def __init__(self, place: Place, tools: Place, guarded: Path, policy: Path, state_dir: Path, work: Path) -> None:
        super().__init__(place, tools, guarded, policy, state_dir, work)
        configuration = work / "bench.toml"
        configuration.write_text(f"[maps]\nnames = {NAMES_MOST}\nsources = {SOURCES_MOST}\n")
        self._words += ["--config", str(configuration)]


class Site:
    """Both sides, the policy and an engine that is not started yet."""

    def __init__(self, plan: Plan, parts: ExitStack) -> None:
        self.plan = plan
        self.work = plan.work
        self.work.mkdir(mode=0o700)
        self.groups = Groups(plan.cgroup)
        self.groups.make()
        self.bare_group = plan.cgroup / "bare.service"
        self.bare_group.mkdir()
        self.tools = Place(self.groups.tools)
        if plan.mounts_bpffs:
            self.tools.run(["mount", "-t", "bpf", "bpf", str(BPFFS)])
        make_certificates(self.work, self.tools)
        self.client = Namespace(self.tools)
        parts.callback(self.client.close)
        self.server = Namespace(self.tools)
        parts.callback(self.server.close)
        self._wire()
        self.guarded = Place(self.groups.plain, self.client.path)
        self.bare = Place(self.bare_group, self.client.path)
        self.served = Place(self.groups.servers, self.server.path)
        self.policy = self.work / "policy"
        shutil.copytree(ROOT / "policies", self.policy)
        self._deny(DENIED_SUFFIX)
        place = Place(self.groups.engine, self.client.path)
        self.gate = _Gate(place, self.tools, self.groups.guarded, self.policy, plan.state, self.work)
        parts.callback(self.gate.close)

    def _deny(self, suffix: str) -> None:
        """Add a suffix to the starter library's list of denied names."""
        settings = self.policy / "settings" / "denied_names.json"
        document = json.loads(settings.read_text())
        document["denied_names"]["suffixes"][suffix] = "denied for the benchmark"
        settings.write_text(json.dumps(document))

    def _wire(self) -> None:
        client, server = ["link set lo up"], ["link set lo up"]
        for name, net in _WIRES:
            client += [
                f"link add {name}0 type veth peer name {name}1 netns {self.server.keeper.pid}",
                f"link set {name}0 addrgenmode none",
                f"address add {net}.1/30 dev {name}0",
                f"link set {name}0 up",
                # By the other end as router: an address that is new must not cost a neighbour look-up as well.
                f"route add {net}.0/16 via {net}.2",
            ]
            server += [
                f"link set {name}1 addrgenmode none",
                f"address add {net}.2/30 dev {name}1",
                f"link set {name}1 up",
                f"route add local {net}.0/16 dev lo",
            ]
        self.client.configure("\n".join(client))
        self.server.configure("\n".join(server))

    def compile(self, source: str) -> Path:
        """Compile a C program that stands beside this file."""
        binary = self.work / Path(source).stem
        words = ["cc", "-O2", "-Wall", "-o", str(binary), str(Path(__file__).parent / source)]
        done = self.tools.run(words, seconds=60.0)
        if done.code != 0:
            raise LabError(f"{source} does not compile: {done.last_words}", hint="`make setup` installs gcc.")
        return binary


@contextmanager
def open_site() -> Iterator[Site]:
    """Build a site; take everything away at the end, whatever the end is."""
    if os.geteuid() != 0:
        raise PrivilegeError("The benchmarks need root: they make network namespaces", hint="Run `make bench`.")
    undo_abandoned()
    mount = find_mount(Path("/proc/self/mountinfo").read_text())
    plan = Plan.fresh(None, mount, mounts_bpffs=not os.path.ismount(BPFFS))
    journal = Journal.begin(plan)
    parts = ExitStack()
    try:
        yield Site(plan, parts)
    finally:
        with undisturbed():
            parts.close()
            problems = undo(plan)
            journal.close()
    if problems:
        raise LabError("The benchmarks could not take everything away: " + "; ".join(problems))
