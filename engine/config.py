"""The configuration as values: typed, frozen, every setting with its default.

Precedence: flag of the command line, then the file (config_file.py), then the default.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from types import MappingProxyType

from engine.model.facts import Transport
from engine.model.net import IPAddress
from engine.model.posture import Posture

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
MIB = 1 << 20


class Mode(str, Enum):
    OBSERVE = "observe"
    ENFORCE = "enforce"


class EvaluatorKind(str, Enum):
    EMBEDDED = "embedded"
    OPA = "opa"


class XdpMode(str, Enum):
    """Where the ingress program runs. `auto`: in the driver if that works, else in the stack."""

    AUTO = "auto"
    NATIVE = "native"
    GENERIC = "generic"
    OFF = "off"


@dataclass(frozen=True)
class NeverDeny:
    """A destination that no policy can cut off. No ports: every port. `transport` None: TCP and UDP both."""

    prefix: IPNetwork
    ports: tuple[int, ...] = ()
    transport: Transport | None = None


@dataclass(frozen=True)
class Host:
    """What the policy sees as `host`. An empty name: the machine's own."""

    name: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Dns:
    """Resolvers that stay reachable on port 53: those of resolv.conf, and these. `resolvers`: whose answers name
    addresses; empty: those that the system asks."""

    from_resolv_conf: bool = True
    servers: tuple[IPAddress, ...] = ()
    resolvers: tuple[IPAddress, ...] = ()


@dataclass(frozen=True)
class Management:
    """From where the host is administered, and whether the policy's git remote stays reachable."""

    prefixes: tuple[IPNetwork, ...] = ()
    ports: tuple[int, ...] = ()
    git_remote: bool = True


@dataclass(frozen=True)
class Webhook:
    """Where alerts are posted. The secrets stand in files, never in the configuration itself."""

    url: str
    token_file: Path | None = None
    hmac_key_file: Path | None = None
    ca_file: Path | None = None
    timeout: float = 10.0
    queue: int = 1024


@dataclass(frozen=True)
class Alerts:
    """`window`: seconds in which the same violation again is counted, not told."""

    terminal: bool = True
    window: float = 60.0
    webhook: Webhook | None = None


@dataclass(frozen=True)
class Hold:
    """Bounds of what waits for a verdict: bytes of one flow, milliseconds of one flow, packets of all."""

    bytes: int = 65536
    milliseconds: int = 1000
    queue: int = 4096


@dataclass(frozen=True)
class Maps:
    """Entries of each kernel map, and the bytes of the event ring (the kernel wants a power of two)."""

    flows: int = 65536
    destinations: int = 131072
    names: int = 524288
    processes: int = 65536
    strategies: int = 4096
    never_deny: int = 1024
    sources: int = 131072
    ring_bytes: int = 4 * MIB


@dataclass(frozen=True)
class Flags:
    """Settings that the command line has too; None (or no interface): not given there."""

    interfaces: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    policy: Path | None = None
    state_dir: Path | None = None
    mode: Mode | None = None
    evaluator: EvaluatorKind | None = None
    cgroup: Path | None = None


@dataclass(frozen=True)
class Config:
    """`inside`: interfaces by which containers or machines reach the network through this host. `cgroup` None: the root
    of the cgroup2 mount. `policy` and an interface must be given before `run`."""

    interfaces: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    policy: Path | None = None
    state_dir: Path = Path("/var/lib/sallyport")
    mode: Mode = Mode.OBSERVE
    evaluator: EvaluatorKind = EvaluatorKind.EMBEDDED
    cgroup: Path | None = None
    host: Host = field(default_factory=Host)
    never_deny: tuple[NeverDeny, ...] = ()
    dns: Dns = Dns()
    management: Management = Management()
    posture: Posture = field(default_factory=Posture.default)
    alerts: Alerts = Alerts()
    hold: Hold = Hold()
    maps: Maps = Maps()
    xdp_mode: XdpMode = XdpMode.AUTO
    xdp_always: bool = False
    """Attached even while no source is judged, for its counters."""

    @classmethod
    def default(cls) -> Config:
        return cls()

    def with_flags(self, flags: Flags) -> Config:
        """Return the configuration with what the command line says put over it."""
        given = {item.name: getattr(flags, item.name) for item in fields(flags)}
        return replace(self, **{name: value for name, value in given.items() if value not in (None, ())})

    def never_denied(self) -> tuple[NeverDeny, ...]:
        """Return every never-deny entry that the configuration names: the list, management, DNS servers.

        The system's resolvers and the git remote are not here: they are looked up when the engine starts.
        """
        managed = tuple(NeverDeny(prefix, self.management.ports) for prefix in self.management.prefixes)
        resolvers = tuple(NeverDeny(ipaddress.ip_network(server), (53,)) for server in self.dns.servers)
        return self.never_deny + managed + resolvers
