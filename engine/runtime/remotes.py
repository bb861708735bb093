"""The policy's git remote: no policy may cut the host off from the place that a better policy comes from."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

from engine.config import NeverDeny
from engine.model.facts import Transport
from engine.model.net import canonical

_PORTS = {"https": 443, "http": 80, "ssh": 22, "git": 9418}
_SCP = re.compile(r"(?:[^@/]+@)?(\[[^]]+\]|[^:/]+):(?!//)")
_PATIENCE = 2.0


def place(url: str) -> tuple[str, int] | None:
    """Return (host, port) of a git URL (git-fetch(1), "GIT URLS"); None for a path on this machine."""
    if "://" in url:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme.removeprefix("git+"), 0)
        return (parts.hostname, port) if parts.hostname and port else None
    found = _SCP.match(url)
    return (found[1].strip("[]"), 22) if found else None


async def remotes(folder: Path) -> tuple[NeverDeny, ...]:
    """Return never-deny entries for the remotes of the work tree that holds `folder`, as their names resolve now."""
    try:
        child = await asyncio.create_subprocess_exec(
            "git", "-c", "safe.directory=*", "-C", str(folder), "config", "--get-regexp", r"^remote\..*\.url$",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError:
        return ()
    out, _ = await child.communicate()
    found: list[NeverDeny] = []
    for line in out.decode(errors="replace").splitlines():
        where = place(line.partition(" ")[2])
        if where is not None:
            found += await _resolved(*where)
    return tuple(found)


async def _resolved(host: str, port: int) -> list[NeverDeny]:
    try:
        answers = await asyncio.wait_for(
            asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM), _PATIENCE
        )
    except (OSError, asyncio.TimeoutError):
        return []
    addresses = {canonical(ipaddress.ip_address(answer[4][0])) for answer in answers}
    return [NeverDeny(ipaddress.ip_network(address), (port,), Transport.TCP) for address in sorted(addresses, key=str)]
