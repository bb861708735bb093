"""What is sent once more is what was judged, or it is judged."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.host import Host, awaited
from tests.support.hello import client_hello
from tests.support.netns import Agent, Namespace, join

PORT, BEYOND, NETWORK, NOBODY = 8443, "10.79.0.2", 79, 65534
RIGHT, WRONG = client_hello("right.example"), client_hello("wrong.example")
POLICY = {
    "sallyport.rego": 'package sallyport\n\ndefault_verdict := "allow"\n',
    "rules/names/names.rego": (
        "package sallyport.rules.names\n\n"
        'scope := {"name"}\n\n'
        'deny contains "no such name" if input.name.value == "wrong.example"\n'
    ),
}


@pytest.fixture(scope="module")
def beyond() -> Iterator[Namespace]:
    space = Namespace("spb")
    yield space
    space.close()


@pytest.fixture(scope="module")
def host(beyond: Namespace) -> Iterator[Host]:
    """A host with a router between it and the server."""
    host = Host(POLICY)
    try:
        join(host.outside, beyond, "onward", "beyond", NETWORK)
        host.outside.call(lambda: _write("/proc/sys/net/ipv4/conf/all/forwarding"))
        host.inside.ip("route", "add", "default", "via", "10.77.0.2")
        beyond.ip("route", "add", "default", "via", f"10.{NETWORK}.0.1")
        host.start()
        yield host
    finally:
        host.close()


def _write(path: str) -> None:
    with open(path, "w") as file:  # noqa: PTH123
        file.write("1")


def test_a_hello_whose_memory_changes(host: Host, beyond: Namespace) -> None:
    """A socket's queue refers to the file's pages (sendfile), and the first copy ends at the first router."""
    server, client = Agent(beyond), host.agent()
    try:
        server.do(f"l = listening({BEYOND!r}, {PORT})")
        client.do(
            f"import tempfile\nfile = tempfile.TemporaryFile(); file.write({RIGHT!r}); file.flush()\n"
            f"os.setgid({NOBODY}); os.setuid({NOBODY}); s = connected({BEYOND!r}, {PORT})"
        )
        server.do("p = accepted(l)")
        before = host.engine.status()["hold"]["judged"]
        client.do(
            "s.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)\n"
            f"os.sendfile(s.fileno(), file.fileno(), 0, {len(RIGHT)})"
        )
        awaited(lambda: host.engine.status()["hold"]["judged"] > before, host.engine.told)
        client.do(f"os.pwrite(file.fileno(), {WRONG!r}, 0); s.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 64)")
        with pytest.raises(OSError, match=r"reset|abort|timed out"):
            server.do("p.recv(1)")
    finally:
        server.close()
        host.dismiss()
