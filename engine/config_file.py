"""The configuration file: TOML, where every key is typed and bounded and an unknown one refused.

`load` is the only function that reads a file; `parse` turns bytes into a `Config`. docs/operations.md
describes every key.
"""

from __future__ import annotations

import ipaddress
import sys
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypedDict
from urllib.parse import urlsplit

from engine.config import (
    MIB,
    Alerts,
    Config,
    Dns,
    Flags,
    Hold,
    Host,
    IPNetwork,
    Management,
    Maps,
    NeverDeny,
    Webhook,
    XdpMode,
)
from engine.errors import ConfigError
from engine.model.facts import Transport
from engine.model.net import IPAddress, canonical
from engine.model.posture import Condition, Posture
from engine.toml_table import Table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


def load(file: Path | None, flags: Flags | None = None) -> Config:
    """Read the file (None: defaults only) and put the flags over it.

    Raises ConfigError when the file is missing, unreadable, no TOML, or says something it may not.
    """
    config = Config.default()
    if file is not None:
        try:
            with file.open("rb") as stream:
                data = stream.read(MIB + 1)
        except OSError as error:
            raise ConfigError(
                f"The configuration {file} cannot be read: {error.strerror}.",
                hint="Give --config the path of a readable TOML file, or leave it out for the defaults.",
            ) from error
        if len(data) > MIB:
            raise ConfigError(f"{file}: more than 1 MiB.", hint="This is hardly a configuration: check the path.")
        config = parse(data, file)
    return config.with_flags(flags or Flags())


def parse(data: bytes, file: Path) -> Config:
    """Turn bytes into a Config; `file` names them in errors, and relative paths start at its folder."""
    try:
        values = tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: byte {error.start} is not UTF-8.", hint="Save the file as UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not TOML: {error}.", hint="Look at that line.") from error
    except RecursionError as error:
        raise ConfigError(f"{file}: nested too deeply.", hint="No key lies that deep.") from error
    top = Table(values, file)
    default = Config.default()
    config = Config(
        interfaces=top.parsed("interfaces", (), _interface, "interface names"),
        inside=top.parsed("inside", (), _interface, "interface names"),
        policy=top.path("policy", None),
        state_dir=top.path("state_dir", default.state_dir) or default.state_dir,
        mode=top.choice("mode", default.mode),
        evaluator=top.choice("evaluator", default.evaluator),
        cgroup=top.path("cgroup", None),
        host=_host(top.table("host")),
        never_deny=tuple(_never_deny(table) for table in top.tables("never_deny")),
        dns=_dns(top.table("dns")),
        management=_management(top.table("management")),
        posture=_posture(top.table("posture")),
        alerts=_alerts(top.table("alerts")),
        hold=_hold(top.table("hold")),
        maps=_maps(top.table("maps")),
        **_xdp(top.table("xdp")),
    )
    top.finish()
    return config


def _host(table: Table) -> Host:
    host = Host(name=table.text("name", ""), labels=MappingProxyType(table.texts("labels")))
    table.finish()
    return host


def _never_deny(table: Table) -> NeverDeny:
    if not table.holds("prefix"):
        raise table.error("prefix", "is missing", hint='For example prefix = "192.0.2.0/24".')
    try:
        prefix = _network(table.text("prefix", ""))
    except ValueError as error:
        raise table.error("prefix", f"is no prefix: {error}", hint="Host bits are zero, as in 192.0.2.0/24.") from error
    transports = {member.value: member for member in (Transport.TCP, Transport.UDP)}
    word = table.text("transport", "any")
    if word != "any" and word not in transports:
        raise table.error("transport", f"is {word!a}, and must be one of any, tcp, udp")
    entry = NeverDeny(prefix, table.integers("ports", (), least=1, most=65535), transports.get(word))
    table.finish()
    return entry


def _dns(table: Table) -> Dns:
    dns = Dns(
        table.flag("from_resolv_conf", True),
        table.parsed("servers", (), _address, "addresses"),
        table.parsed("resolvers", (), _address, "addresses"),
    )
    table.finish()
    return dns


def _management(table: Table) -> Management:
    management = Management(
        table.parsed("prefixes", (), _network, "prefixes"),
        table.integers("ports", (), least=1, most=65535),
        table.flag("git_remote", True),
    )
    table.finish()
    return management


def _posture(table: Table) -> Posture:
    default = Posture.default()
    posture = default.with_changes(
        {condition: table.choice(condition.value, default[condition]) for condition in Condition}
    )
    table.finish()
    return posture


def _alerts(table: Table) -> Alerts:
    default = Alerts()
    webhook = table.table("webhook")
    alerts = Alerts(
        terminal=table.flag("terminal", default.terminal),
        window=table.seconds("window", default.window, least=0, most=86400),
        webhook=_webhook(webhook) if table.holds("webhook") else None,
    )
    table.finish()
    return alerts


def _webhook(table: Table) -> Webhook:
    url = table.text("url", "")
    if not url:
        raise table.error(
            "url", "is missing", hint='Say where alerts go, for example url = "https://example.org/hook".'
        )
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        usable = parts.scheme in ("http", "https") and host != "" and parts.port != 0
    except ValueError:  # the port is no number, or a bracket is missing
        parts, host, usable = urlsplit(""), "", False
    if not usable or not url.isascii() or " " in url:
        raise table.error("url", f"is {url!a}, which is no http or https URL")
    if parts.username is not None or parts.password is not None:
        raise table.error("url", "holds a user or a password", hint="A bearer token goes into a token_file.")
    webhook = Webhook(
        url=url,
        token_file=table.path("token_file", None),
        hmac_key_file=table.path("hmac_key_file", None),
        ca_file=table.path("ca_file", None),
        timeout=table.seconds("timeout", Webhook.timeout, least=0.1, most=300),
        queue=table.integer("queue", Webhook.queue, least=1, most=65536),
    )
    if parts.scheme == "http" and webhook.token_file is not None and not _is_loopback(host):
        raise table.error("url", "is http, and would show the token to the network", hint="Use https.")
    table.finish()
    return webhook


def _hold(table: Table) -> Hold:
    default = Hold()
    hold = Hold(
        bytes=table.integer("bytes", default.bytes, least=2048, most=MIB),
        milliseconds=table.integer("milliseconds", default.milliseconds, least=1, most=60000),
        queue=table.integer("queue", default.queue, least=1, most=65536),
    )
    table.finish()
    return hold


def _maps(table: Table) -> Maps:
    sizes: dict[str, Any] = {}
    for item in fields(Maps):
        least, most = (65536, 256 * MIB) if item.name == "ring_bytes" else (1, 1 << 24)
        sizes[item.name] = table.integer(item.name, getattr(Maps, item.name), least=least, most=most)
    maps = Maps(**sizes)
    if maps.ring_bytes & (maps.ring_bytes - 1):
        raise table.error("ring_bytes", f"is {maps.ring_bytes}, which is no power of two", hint="4194304 is 4 MiB.")
    table.finish()
    return maps


class _Xdp(TypedDict):
    xdp_mode: XdpMode
    xdp_always: bool


def _xdp(table: Table) -> _Xdp:
    found = _Xdp(xdp_mode=table.choice("mode", XdpMode.AUTO), xdp_always=table.flag("always", default=False))
    table.finish()
    return found


def _network(text: str) -> IPNetwork:
    network = ipaddress.ip_network(text)
    # The kernel's keys hold IPv4 as ::ffff:a.b.c.d: an IPv6 prefix in there would be a second spelling.
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(MAPPED):
        raise ValueError("write it as IPv4")
    return network


def _address(text: str) -> IPAddress:
    return canonical(ipaddress.ip_address(text))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _interface(text: str) -> str:
    # The kernel's own bounds (dev_valid_name): 15 bytes, no slash, colon or white space, no directory's name. A
    # pattern may be longer than what it matches: veth[0-9a-f]*.
    most = 64 if any(sign in text for sign in "*?[") else 15
    if not 0 < len(text.encode()) <= most or text in (".", "..") or any(c in "/:" or c.isspace() for c in text):
        raise ValueError("no interface can be called so")
    return text
