"""Nobody becomes unknown by choice: who a rule denies is denied by whatever socket and at whatever moment."""

from __future__ import annotations

import contextlib

import pytest

from tests.kernel.cable import Cable
from tests.kernel.host import Host
from tests.kernel.lab import OUTSIDE
from tests.support.netns import Agent

BY_USER, BY_PROGRAM, BY_GROUP = 7000, 7001, 7002
NOBODY = 65534


def rule(name: str, port: int, fact: str, condition: str) -> str:
    return (
        f"package sallyport.rules.{name}\n\n"
        f'scope := {{"dest", "{fact}"}}\n\n'
        f'target_scope := {{"dest"}}\n\ntarget if input.dest.port == {port}\n\n'
        f'deny contains "not by them" if {condition}\n'
    )


POLICY = {
    "sallyport.rego": 'package sallyport\n\ndefault_verdict := "allow"\n',
    "rules/users/users.rego": rule("users", BY_USER, "user", f"input.user.uid == {NOBODY}"),
    "rules/programs/programs.rego": rule("programs", BY_PROGRAM, "exe", 'contains(input.exe.path, "python")'),
    "rules/groups/groups.rego": rule("groups", BY_GROUP, "cgroup", 'contains(input.cgroup.path, "fleeting")'),
}


@pytest.mark.parametrize(
    ("kind", "transport"), [("STREAM", "IPPROTO_MPTCP"), ("DGRAM", "IPPROTO_UDP"), ("DGRAM", "IPPROTO_UDPLITE")]
)
def test_a_user_by_another_transport(host: Host, cable: Cable, kind: str, transport: str) -> None:
    client = host.agent()
    token = f"by {transport}".encode()
    client.do(
        f"os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        f"s = socket.socket(socket.AF_INET, socket.SOCK_{kind}, socket.{transport}); s.settimeout(3)"
    )

    def send() -> None:
        with contextlib.suppress(OSError):
            client.do(f"s.connect(({OUTSIDE!r}, {BY_USER})); s.send({token!r})")

    assert not cable.lets_out(token, send)


ORPHANS = {
    "connected": (f"u.connect(({OUTSIDE!r}, {BY_PROGRAM}))", "u.send(TOKEN)"),
    "not connected": ("0", f"u.sendto(TOKEN, ({OUTSIDE!r}, {BY_PROGRAM}))"),
}


@pytest.mark.parametrize("how", ORPHANS)
def test_a_program_that_has_ended(host: Host, cable: Cable, how: str) -> None:
    """A child sends and is gone; what its parent connected had sent nothing before that one ended."""
    begin, send = ORPHANS[how]
    client = host.agent()
    token = f"from an orphan, {how}".encode()
    orphan = (
        f"TOKEN = {token!r}; r, w = os.pipe(); a, b = os.pipe()\n"
        "if os.fork() == 0:\n"
        f"    u = udp(); {begin}\n"
        "    if os.fork() == 0:\n"
        f"        os.read(r, 1); {send}\n"
        "        os.write(b, b'x')\n"
        "    os._exit(0)\n"
        "os.wait(); os.write(w, b'x'); os.read(a, 1)"
    )

    def send_and_end() -> None:
        host.engine.pause()  # it looks only when the child has gone
        try:
            client.do(orphan)
        finally:
            host.engine.resume()

    assert not cable.lets_out(token, send_and_end)


def test_a_group_that_is_gone(host: Host, cable: Cable) -> None:
    group = host.cgroup / "fleeting"
    group.mkdir()
    client = Agent(host.inside, group)
    try:
        client.do(f"u = udp(); u.connect(({OUTSIDE!r}, {BY_GROUP}))")
        (host.cgroup / "cgroup.procs").write_text(str(client.pid))
        group.rmdir()
        assert not cable.lets_out(b"from no group", lambda: client.do("u.send(b'from no group')"))
    finally:
        client.close()
