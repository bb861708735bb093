"""What comes in, with the real engine: judged like what leaves, answered where it is rejected, and never in the way of
the answers to what left."""

from __future__ import annotations

import errno
import itertools
import struct
from collections.abc import Iterator

import pytest

from tests.kernel.host import Host, awaited
from tests.kernel.lab import INSIDE, INSIDE6, OUTSIDE, OUTSIDE6
from tests.support.hello import client_hello

NUMBERS = itertools.count(1)
SERVED, REJECTED, NAMED, CLOSED = 8080, 8081, 8443, 9999
POLICY = {
    "sallyport.rego": 'package sallyport\n\ndefault_verdict := "allow"\n\ninbound_verdict := "deny"\n',
    "rules/served/served.rego": (
        "package sallyport.rules.served\n\n"
        'scope := {"direction", "dest"}\n\n'
        'allow contains "served here" if {\n\tinput.direction == "ingress"\n'
        f"\tinput.dest.port in {{{SERVED}, {NAMED}}}\n}}\n\n"
        'reject contains "not here" if {\n\tinput.direction == "ingress"\n'
        f"\tinput.dest.port == {REJECTED}\n}}\n"
    ),
    "rules/names/names.rego": (
        "package sallyport.rules.names\n\n"
        'scope := {"direction", "name"}\n\n'
        'target_scope := {"direction"}\n\ntarget if input.direction == "ingress"\n\n'
        'deny contains "no such name here" if input.name.value == "wrong.example"\n'
    ),
    "rules/paths/paths.rego": (
        "package sallyport.rules.paths\n\n"
        'scope := {"direction", "http"}\n\n'
        'target_scope := {"direction"}\n\ntarget if input.direction == "ingress"\n\n'
        'deny contains "not from outside" if startswith(input.http.path, "/admin")\n'
    ),
}


def refused(host: Host, address: str, port: int) -> int:
    """The errno with which a connection from outside ends; 0 when it comes about."""
    client = host.agent(outside=True)
    try:
        client.do(f"s = tcp({address!r}); s.settimeout(2); s.connect(({address!r}, {port}))")
    except OSError as error:
        return error.errno or errno.ETIMEDOUT
    return 0


@pytest.mark.parametrize("address", [INSIDE, INSIDE6])
def test_what_is_served_is_reached_and_nothing_else(host: Host, address: str) -> None:
    server = host.agent()
    server.do(f"served = listening({address!r}, {SERVED}); closed = listening({address!r}, {CLOSED})")
    client = host.agent(outside=True)
    client.do(f"s = connected({address!r}, {SERVED}); s.sendall(b'ping')")
    assert server.do("peer = accepted(served); exactly(peer, 4)") == b"ping"
    server.do("peer.sendall(b'pong')")
    assert client.do("exactly(s, 4)") == b"pong"
    assert refused(host, address, CLOSED) == errno.ETIMEDOUT
    assert server.do("closed.settimeout(0.1)\ntry:\n    closed.accept()\n    r = 1\nexcept OSError:\n    r = 0\nr") == 0


@pytest.mark.parametrize("address", [INSIDE, INSIDE6])
def test_a_rejected_client_hears_at_once(host: Host, address: str) -> None:
    server = host.agent()
    server.do(f"listening({address!r}, {REJECTED})")
    assert refused(host, address, REJECTED) == errno.ECONNREFUSED
    client = host.agent(outside=True)
    client.do(f"u = udp({address!r}); u.connect(({address!r}, {REJECTED})); u.send(b'anybody?')")
    with pytest.raises(OSError, match="refused"):
        client.do("u.recv(16)")


@pytest.mark.parametrize(("name", "arrives"), [("right.example", True), ("wrong.example", False)])
@pytest.mark.parametrize("split", [0, 5, 60])
def test_a_name_is_judged_before_the_server_reads_a_byte(host: Host, name: str, split: int, *, arrives: bool) -> None:
    hello = client_hello(name)
    server = host.agent()
    server.do(f"l = listening({INSIDE!r}, {NAMED})")
    client = host.agent(outside=True)
    client.do(f"s = connected({INSIDE!r}, {NAMED})")
    server.do("peer = accepted(l)")
    client.do(f"s.sendall({hello[:split]!r}); s.sendall({hello[split:]!r})")
    if arrives:
        assert server.do(f"exactly(peer, {len(hello)})") == hello
        return
    with pytest.raises(OSError, match=r"reset|abort"):
        server.do("peer.recv(1)")
    with pytest.raises(OSError, match="reset"):
        client.do("s.recv(1)")


@pytest.mark.parametrize(("path", "arrives"), [("/", True), ("/admin/users", False)])
@pytest.mark.parametrize("split", [0, 3, 20])
def test_a_request_is_judged_before_the_server_reads_a_byte(
    host: Host, path: str, split: int, *, arrives: bool
) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: served.example\r\n\r\n".encode()
    server = host.agent()
    server.do(f"l = listening({INSIDE!r}, {SERVED})")
    client = host.agent(outside=True)
    client.do(f"s = connected({INSIDE!r}, {SERVED})")
    server.do("peer = accepted(l)")
    client.do(f"s.sendall({request[:split]!r}); s.sendall({request[split:]!r})")
    if arrives:
        assert server.do(f"exactly(peer, {len(request)})") == request
        return
    with pytest.raises(OSError, match=r"reset|abort"):
        server.do("peer.recv(1)")


def test_a_server_that_speaks_first_is_heard_before_the_name_is_known(host: Host) -> None:
    server = host.agent()
    server.do(f"l = listening({INSIDE!r}, {SERVED})")
    client = host.agent(outside=True)
    client.do(f"s = connected({INSIDE!r}, {SERVED})")
    server.do("peer = accepted(l); peer.sendall(b'220 welcome')")
    assert client.do("exactly(s, 11)") == b"220 welcome"


@pytest.mark.parametrize(("ours", "theirs"), [(INSIDE, OUTSIDE), (INSIDE6, OUTSIDE6)])
def test_answers_to_what_left_come_in(host: Host, ours: str, theirs: str) -> None:
    far = host.agent(outside=True)
    far.do(f"l = listening({theirs!r}, 7000); u = bound({theirs!r}, 7000)")
    near = host.agent()
    near.do(f"s = connected({theirs!r}, 7000); s.sendall(b'tcp?')")
    far.do("p = accepted(l); exactly(p, 4); p.sendall(b'tcp!')")
    assert near.do("exactly(s, 4)") == b"tcp!"
    near.do(f"u = udp({theirs!r}); u.sendto(b'udp?', ({theirs!r}, 7000))")
    far.do("data, who = u.recvfrom(16); u.sendto(b'udp!', who)")
    assert near.do("u.recv(16)") == b"udp!"
    # Who was never written to is no one to hear from.
    port = near.do("u.getsockname()[1]")
    stranger = host.agent(outside=True)
    before = host.engine.status()["hold"]["discarded"]
    stranger.do(f"u = bound({theirs!r}, 7001); u.sendto(b'hello', ({ours!r}, {port}))")
    awaited(lambda: host.engine.status()["hold"]["discarded"] > before, lambda: host.engine.status()["hold"])
    with pytest.raises(BlockingIOError):
        near.do("u.setblocking(False); u.recv(16)")


def test_an_error_about_what_left_comes_in(host: Host) -> None:
    near = host.agent()
    near.do(f"u = udp({OUTSIDE!r}); u.connect(({OUTSIDE!r}, 7999)); u.send(b'nobody?')")
    with pytest.raises(OSError, match="refused"):
        near.do("u.recv(16)")


def test_the_log_and_the_alert_name_the_peer(host: Host) -> None:
    assert refused(host, INSIDE, CLOSED) == errno.ETIMEDOUT
    host.engine.tells(OUTSIDE, f"{INSIDE} port {CLOSED} refused", "default")


def test_a_new_policy_ends_what_it_no_longer_lets_in(host: Host) -> None:
    server = host.agent()
    server.do(f"l = listening({INSIDE!r}, {SERVED})")
    client = host.agent(outside=True)
    client.do(f"s = connected({INSIDE!r}, {SERVED}); s.sendall(b'ping')")
    server.do("peer = accepted(l); exactly(peer, 4)")
    rule = host.policy / "rules/served/served.rego"
    text = rule.read_text()
    try:
        rule.write_text(text.replace(f"{{{SERVED}, {NAMED}}}", f"{{{NAMED}}}"))
        with pytest.raises(OSError, match=r"reset|abort"):
            server.do("peer.recv(1)")
        with pytest.raises(OSError, match="reset"):
            client.do("s.recv(1)")
    finally:
        rule.write_text(text)
        awaited(lambda: refused(host, INSIDE, SERVED) == 0, host.engine.told)


def test_a_policy_without_a_word_on_it_lets_everything_in(host: Host) -> None:
    root = host.policy / "sallyport.rego"
    text = root.read_text()
    server = host.agent()
    server.do(f"l = listening({INSIDE!r}, {CLOSED})")
    try:
        root.write_text('package sallyport\n\ndefault_verdict := "allow"\n')
        awaited(lambda: refused(host, INSIDE, CLOSED) == 0, host.engine.told)
    finally:
        root.write_text(text)
        awaited(lambda: refused(host, INSIDE, CLOSED) == errno.ETIMEDOUT, host.engine.told)


def pinged(host: Host, *, outside: bool, kind: int = 8) -> bool:
    """Send one ICMP message from one side to the other by a raw socket; does its data get there?"""
    near, far = host.agent(outside=outside), host.agent(outside=not outside)
    target = INSIDE if outside else OUTSIDE
    raw = "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)"
    far.do(f"r = {raw}; r.settimeout(2)")
    data = struct.pack("!BBHHH", kind, 0, 0, 7, next(NUMBERS)) + b"told"
    total = sum(struct.unpack("!6H", data))
    message = data[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + data[4:]
    near.do(f"r = {raw}; r.sendto({message!r}, ({target!r}, 0))")
    try:
        return bool(far.do(f"d = b''\nwhile {message!r} not in d:\n    d = r.recv(256)\nTrue"))
    except OSError:
        return False


@pytest.fixture
def shut(host: Host) -> Iterator[Host]:
    """Everything may come in, and nothing leave but what belongs to it."""
    root, words = host.policy / "sallyport.rego", (host.policy / "sallyport.rego").read_text()
    try:
        root.write_text(
            words.replace('default_verdict := "allow"', 'default_verdict := "deny"').replace(
                'inbound_verdict := "deny"', 'inbound_verdict := "allow"'
            )
        )
        awaited(lambda: refused(host, INSIDE, CLOSED) != errno.ETIMEDOUT, host.engine.told)
        yield host
    finally:
        root.write_text(words)
        awaited(lambda: refused(host, INSIDE, CLOSED) == errno.ETIMEDOUT, host.engine.told)


def test_who_was_let_in_with_a_ping_is_not_told_more_than_the_answer(shut: Host) -> None:
    """ICMP has no ports: without its types apart, one ping would make a flow of all ICMP between two hosts."""
    answered = shut.engine.status()["counters"]["passed_released"]
    assert pinged(shut, outside=True)
    assert shut.engine.status()["counters"]["passed_released"] > answered
    assert not pinged(shut, outside=False)
    assert not pinged(shut, outside=False, kind=13)


def test_an_answer_that_nobody_asked_for_lets_no_question_out(shut: Host) -> None:
    """Neither one that the engine let in nor one that a standing verdict did."""
    rules = [shut.policy / f"rules/{rule}/{rule}.rego" for rule in ("names", "paths")]
    texts = [rule.read_text() for rule in rules]
    before = shut.engine.generation()
    try:
        for rule in rules:
            rule.unlink()
        awaited(lambda: shut.engine.generation() > before, shut.engine.told)
        for _ in range(3):
            assert pinged(shut, outside=True, kind=0)
            assert not pinged(shut, outside=False)
    finally:
        before = shut.engine.generation()
        for rule, text in zip(rules, texts, strict=True):
            rule.write_text(text)
        awaited(lambda: shut.engine.generation() > before, shut.engine.told)


def test_an_answer_that_nobody_asked_for_keeps_no_later_one_out(host: Host) -> None:
    assert not pinged(host, outside=True, kind=0)
    assert pinged(host, outside=False)
    assert pinged(host, outside=True, kind=0)


def test_a_socket_that_answered_who_was_let_in_is_judged_for_everybody_else(shut: Host) -> None:
    server, client = shut.agent(), shut.agent(outside=True)
    server.do(f"u = bound({INSIDE!r}, 7100)")
    client.do(f"c = bound({OUTSIDE!r}, 7101); other = bound({OUTSIDE!r}, 7102)")
    client.do(f"c.sendto(b'question', ({INSIDE!r}, 7100))")
    server.do("data, who = u.recvfrom(16)")
    for _ in range(2):
        server.do("u.sendto(b'answer', who)")
        assert client.do("c.recv(16)") == b"answer"
    before = shut.engine.status()["hold"]["discarded"]
    server.do(f"u.sendto(b'secret', ({OUTSIDE!r}, 7102))")
    awaited(lambda: shut.engine.status()["hold"]["discarded"] > before, lambda: shut.engine.status()["hold"])
    with pytest.raises(BlockingIOError):
        client.do("other.setblocking(False); other.recv(16)")
