"""The configuration: what a person writes, what the engine gets, and what is refused with which words."""

from __future__ import annotations

import dataclasses
import ipaddress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import config_file
from engine.config import Config, EvaluatorKind, Flags, Mode, NeverDeny, XdpMode
from engine.errors import ConfigError
from engine.model.facts import Transport
from engine.model.posture import Condition, Stance

FILE = Path("/etc/sallyport/sallyport.toml")

WHOLE = """
interfaces = ["eth0", "wg0"]
policy = "policy"
state_dir = "/srv/sallyport"
mode = "enforce"
evaluator = "opa"
cgroup = "/sys/fs/cgroup/system.slice"

[host]
name = "web-1"
labels = { tier = "web", rack = "b12" }

[[never_deny]]
prefix = "192.0.2.0/24"
ports = [22, 443]
transport = "tcp"

[[never_deny]]
prefix = "2001:db8::1/128"

[dns]
from_resolv_conf = false
servers = ["192.0.2.53", "2001:db8::53"]
resolvers = ["::ffff:192.0.2.54"]

[management]
prefixes = ["198.51.100.0/24"]
ports = [22]
git_remote = false

[posture]
engine_absent = "open"
disk_full = "closed"

[alerts]
terminal = false
window = 5

[alerts.webhook]
url = "https://alerts.example/hook?team=net"
token_file = "token"
hmac_key_file = "/run/secrets/hmac"
ca_file = "ca.pem"
timeout = 2.5
queue = 16

[hold]
bytes = 8192
milliseconds = 250
queue = 64

[maps]
names = 1000
ring_bytes = 1048576

[xdp]
mode = "generic"
always = true
"""


def parse(text: str) -> Config:
    return config_file.parse(text.encode(), FILE)


def refused(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return caught.value


def test_every_setting_of_a_whole_file_arrives() -> None:
    config = parse(WHOLE)

    assert config.interfaces == ("eth0", "wg0")
    assert config.policy == Path("/etc/sallyport/policy")
    assert config.state_dir == Path("/srv/sallyport")
    assert (config.mode, config.evaluator) == (Mode.ENFORCE, EvaluatorKind.OPA)
    assert config.cgroup == Path("/sys/fs/cgroup/system.slice")
    assert (config.host.name, dict(config.host.labels)) == ("web-1", {"tier": "web", "rack": "b12"})
    assert config.never_denied() == (
        NeverDeny(ipaddress.ip_network("192.0.2.0/24"), (22, 443), Transport.TCP),
        NeverDeny(ipaddress.ip_network("2001:db8::1/128")),
        NeverDeny(ipaddress.ip_network("198.51.100.0/24"), (22,)),
        NeverDeny(ipaddress.ip_network("192.0.2.53/32"), (53,)),
        NeverDeny(ipaddress.ip_network("2001:db8::53/128"), (53,)),
    )
    assert (config.dns.from_resolv_conf, config.management.git_remote) == (False, False)
    assert config.dns.resolvers == (ipaddress.ip_address("192.0.2.54"),)
    assert config.posture[Condition.ENGINE_ABSENT] is Stance.OPEN
    assert config.posture[Condition.DISK_FULL] is Stance.CLOSED
    assert config.posture[Condition.MAP_FULL] is Stance.CLOSED
    assert (config.alerts.terminal, config.alerts.window) == (False, 5.0)
    webhook = config.alerts.webhook
    assert webhook is not None
    assert dataclasses.astuple(webhook) == (
        "https://alerts.example/hook?team=net",
        Path("/etc/sallyport/token"),
        Path("/run/secrets/hmac"),
        Path("/etc/sallyport/ca.pem"),
        2.5,
        16,
    )
    assert dataclasses.astuple(config.hold) == (8192, 250, 64)
    assert (config.maps.names, config.maps.ring_bytes, config.maps.flows) == (1000, 1048576, 65536)
    assert (config.xdp_mode, config.xdp_always) == (XdpMode.GENERIC, True)


def test_an_empty_file_is_the_default_and_the_default_observes() -> None:
    assert parse("") == Config.default()
    assert Config.default().mode is Mode.OBSERVE
    assert Config.default().alerts.webhook is None


def test_flags_stand_above_the_file_and_the_file_above_the_default(tmp_path: Path) -> None:
    file = tmp_path / "sallyport.toml"
    file.write_text('mode = "enforce"\ninterfaces = ["eth0"]\nevaluator = "opa"\n')

    config = config_file.load(file, Flags(interfaces=("lo",), mode=Mode.OBSERVE, state_dir=Path("/tmp/state")))

    assert config.interfaces == ("lo",)
    assert config.mode is Mode.OBSERVE
    assert config.state_dir == Path("/tmp/state")
    assert config.evaluator is EvaluatorKind.OPA
    assert config_file.load(file, Flags(mode=Mode.OBSERVE)).interfaces == ("eth0",)
    assert config_file.load(None) == Config.default()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("intefaces = ['eth0']", ("intefaces", "Did you mean interfaces?")),
        ("[posture]\nengine_absnt = 'open'", ("[posture]", "engine_absnt", "Did you mean engine_absent?")),
        (
            "[alerts.webhook]\nurl = 'https://h/'\ntokenfile = 'x'",
            ("[alerts.webhook]", "Did you mean token_file?"),
        ),
        ("[[never_deny]]\nprefix = '192.0.2.0/24'\nprot = [1]", ("[never_deny[1]]", "Did you mean ports?")),
        ("[xdp]\nqqq = 1", ("Known here: always, mode",)),
        ("mode = 'enfroce'", ("mode is 'enfroce'", "observe, enforce", "Did you mean enforce?")),
        ("mode = true", ("mode is True", "observe, enforce")),
        ("interfaces = 'eth0'", ("must be a list", '["a", "b"]')),
        ("interfaces = ['a/b']", ("no interface can be called so",)),
        ("interfaces = ['sixteen-bytes-xx']", ("no interface can be called so",)),
        ("interfaces = [1]", ("holds 1",)),
        ("policy = ''", ("policy must be printable text and not empty",)),
        ("policy = 3", ("must be text",)),
        ("[hold]\nbytes = 1.5", ("hold.bytes", "whole number")),
        ("[hold]\nqueue = true", ("hold.queue", "whole number")),
        ("[hold]\nqueue = 0", ("hold.queue is 0", "from 1 to 65536")),
        ("hold = 3", ("hold must be a table", "[hold]")),
        ("[maps]\nring_bytes = 70000", ("power of two",)),
        ("[alerts]\nwindow = nan", ("alerts.window is nan",)),
        ("[alerts]\nterminal = 'yes'", ("true or false",)),
        ("[alerts.webhook]", ("alerts.webhook.url is missing",)),
        ("[alerts.webhook]\nurl = 'ftp://h/'", ("no http or https URL",)),
        ("[alerts.webhook]\nurl = 'https://h:port/'", ("no http or https URL",)),
        ("[alerts.webhook]\nurl = 'https://u:p@h/'", ("user or a password", "token_file")),
        ("[alerts.webhook]\nurl = 'http://h/'\ntoken_file = 't'", ("show the token", "https")),
        ("[[never_deny]]\nports = [22]", ("prefix is missing",)),
        ("[[never_deny]]\nprefix = '192.0.2.1/24'", ("no prefix", "Host bits")),
        ("[[never_deny]]\nprefix = '::ffff:192.0.2.0/120'", ("write it as IPv4",)),
        ("[[never_deny]]\nprefix = '192.0.2.0/24'\nports = [70000]", ("70000", "65535")),
        ("[[never_deny]]\nprefix = '192.0.2.0/24'\ntransport = 'sctp'", ("any, tcp, udp",)),
        ("[never_deny]\nprefix = '192.0.2.0/24'", ("[[never_deny]]",)),
        ("[dns]\nservers = ['dns.example']", ("dns.servers holds 'dns.example'",)),
        ("[dns]\nresolvers = ['one.example']", ("dns.resolvers holds 'one.example'",)),
        ("[host.labels]\na = 1", ("host.labels must be a table of texts",)),
        ("a = [", ("not TOML",)),
        ("a = " + "[" * 5000, ("/etc/sallyport/sallyport.toml",)),
    ],
)
def test_what_is_wrong_is_named_with_file_and_mend(text: str, words: tuple[str, ...]) -> None:
    error = refused(text)
    assert str(FILE) in error.message
    for word in words:
        assert word in error.diagnostics()


def test_a_token_may_go_to_the_host_itself_without_tls() -> None:
    config = parse("[alerts.webhook]\nurl = 'http://[::1]:8080/'\ntoken_file = '/t'")
    assert config.alerts.webhook is not None


def test_a_file_that_is_not_utf_8_a_missing_one_and_a_huge_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="byte 3 is not UTF-8"):
        config_file.parse(b"a =\xff", FILE)
    with pytest.raises(ConfigError, match="No such file") as caught:
        config_file.load(tmp_path / "absent.toml")
    assert "--config" in caught.value.hint
    with pytest.raises(ConfigError, match="cannot be read"):
        config_file.load(tmp_path)
    with pytest.raises(ConfigError, match="1 MiB"):
        config_file.load(Path("/dev/zero"))


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_configuration_or_a_config_error(data: bytes) -> None:
    try:
        config = config_file.parse(data, FILE)
    except ConfigError as error:
        config = None
        message = error.message
    assert config is not None or str(FILE) in message
