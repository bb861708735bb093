"""The lab itself: both sides, their programs, the policy and the gate, and what scenarios do with them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.lab import topology
from engine.lab.cast import Remote
from engine.lab.container import INSIDE, LATE_PATTERN, Container
from engine.lab.gate import Gate
from engine.lab.journal import Plan
from engine.lab.place import Ended, Place, environment
from engine.lab.policy import PolicyFolder
from engine.lab.run import BASE, ground, opened
from engine.lab.servers import PORT, Nginx, make_certificates
from engine.lab.topology import SERVER, Topology

PROGRAMS = (*BASE, "git", "nginx", "curl", "openssl", "tc")
REFUSED = "refused"
_CONFIG = f"""
inside = ["{INSIDE}"]

[dns]
from_resolv_conf = false
resolvers = ["{topology.RESOLVER}"]
"""


@dataclass(frozen=True)
class Arrived:
    """What the capture on the server's side saw of one destination."""

    bytes: int
    opened: int
    segments: int
    needle: bool
    sound: bool
    """False when the capture itself missed frames: then it proves nothing."""

    @property
    def nothing(self) -> bool:
        return self.sound and self.bytes == 0

    @property
    def silence(self) -> bool:
        """Not even a SYN. What a connection before this one still says, such as its end, is not meant."""
        return self.nothing and self.opened == 0


class Lab:
    """What scenarios work with. `plain` and `ignored` are Python clients in the control groups of those names; `server`
    is the Python program on the other side, which captures and calls."""

    def __init__(self, plan: Plan, parts: ExitStack) -> None:
        self.plan = plan
        self.groups, self.tools = ground(plan)
        self.curl_path = str(Path(shutil.which("curl", path=environment()["PATH"]) or "curl").resolve())
        self.ca = make_certificates(plan.work, self.tools)
        self.policy = PolicyFolder(plan.work / "policy", self.curl_path, self.tools)
        self.net = Topology(self.tools)
        parts.callback(self.net.close)
        self.container = Container(self.net, self.tools)
        parts.callback(self.container.close)
        client, server = self.net.client.path, self.net.server.path
        self.place = Place(self.groups.plain, client)
        served = Place(self.groups.servers, server)
        self.nginx = Nginx(served, plan.work)
        parts.callback(self.nginx.close)
        self.plain = Remote(self.place)
        self.ignored = Remote(Place(self.groups.ignored, client))
        self.metadata_place = Place(self.groups.metadata, client)
        self.shop, self.other = (
            Place(group, self.container.namespace.path) for group in (self.groups.shop, self.groups.other)
        )
        self.server = Remote(served)
        for remote in (self.plain, self.ignored, self.server):
            parts.callback(remote.close)
        self.server.ask("capture", device=topology.SERVER_DEVICE)
        self.engine_place = Place(self.groups.engine, client)
        config = plan.work / "config.toml"
        config.write_text(_CONFIG)
        self.gate = Gate(
            self.engine_place, self.tools, self.groups.guarded, self.policy.folder, plan.state, plan.work,
            interfaces=(topology.DEVICE, LATE_PATTERN), config=config,
        )  # fmt: skip
        parts.callback(self.gate.close)

    # ---- clients

    def tls(self, name: str, address: str = SERVER, port: int = PORT) -> dict[str, Any]:
        """The arguments of the Python client's orders for a connection to this name."""
        return {"name": name, "address": address, "port": port, "ca": str(self.ca)}

    def python(self, name: str, address: str = SERVER, *, port: int = PORT, **how: Any) -> str:
        """One connection by Python: what the server said, or the error as `ERROR at STEP`."""
        return spoken(self.plain.ask("fetch", **self.tls(name, address, port), **how))

    def curl_words(self, name: str, address: str = SERVER, port: int = PORT) -> list[str]:
        at = f"[{address}]" if ":" in address else address
        words = [self.curl_path, "--silent", "--show-error", "--max-time", "30", "--cacert", str(self.ca)]
        return [*words, "--resolve", f"{name}:{port}:{at}", f"https://{name}:{port}/"]

    def curl(self, name: str, address: str = SERVER, *, place: Place | None = None) -> str:
        """One connection by curl: what the server said, or `refused (curl EXIT)`."""
        return said((place or self.place).run(self.curl_words(name, address)), "curl")

    def openssl(self, name: str, address: str = SERVER) -> str:
        """One connection by openssl s_client: what the server said, or `refused (openssl EXIT)`."""
        at = f"[{address}]:{PORT}" if ":" in address else f"{address}:{PORT}"
        words = ["openssl", "s_client", "-connect", at, "-servername", name, "-CAfile", str(self.ca)]
        words += ["-verify_return_error", "-quiet"]
        return said(self.place.run(words, f"GET / HTTP/1.0\r\nHost: {name}\r\n\r\n"), "openssl")

    def arrived(self, address: str = SERVER, port: int = PORT, needle: str = "") -> Arrived:
        """What reached the server at this address and port since the last time this was asked for it."""
        seen = self.server.ask("captured", address=address, port=port, needle=needle)
        return Arrived(seen["bytes"], seen["opened"], seen["segments"], seen["needle"], seen["missed"] == 0)

    def in_client(self, *words: str) -> Ended:
        """Run an administrator's command in the client's namespace, outside of the guarded control group."""
        return self.engine_place.run(words)


def spoken(answer: dict[str, Any]) -> str:
    return str(answer["answer"]) if "answer" in answer else f"{answer['error']} at {answer['step']}"


def said(ended: Ended, program: str) -> str:
    """The body's last line when the program got one."""
    lines = ended.out.strip().splitlines()
    return lines[-1] if lines and ended.code == 0 else f"{REFUSED} ({program} {ended.code})"


@contextmanager
def open_lab(state_dir: Path | None, begun: Callable[[str], None]) -> Iterator[Lab]:
    """Build a lab; take everything away at the end, whatever the end is. LabError when it cannot be built.

    `begun` hears the run's name before anything is made: it is part of the name of everything that will be.
    """
    with opened(Lab, PROGRAMS, state_dir, begun) as lab:
        yield lab
