"""The control socket: whom it lets in, what it answers, and what it makes of nonsense."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import (
    EngineAbsentError,
    InterfaceError,
    PrivilegeError,
    SallyportError,
    StateError,
    UsageError,
)
from engine.runtime.control import ControlServer, ask


async def handle(request: dict[str, Any]) -> Any:
    match request["command"]:
        case "echo":
            return request
        case "refuse":
            raise InterfaceError("There is no eth9", hint="ip link shows them.")
        case "break":
            raise KeyError("order")
    raise UsageError("unknown")


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """A state directory with an engine that answers in a thread of its own."""
    loop = asyncio.new_event_loop()
    server = ControlServer(tmp_path / "control.sock", handle)
    started = threading.Event()

    def serve() -> None:
        loop.run_until_complete(server.start())
        started.set()
        loop.run_forever()
        loop.run_until_complete(server.stop())
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    started.wait()
    yield tmp_path
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    assert not (tmp_path / "control.sock").exists()


def raw(state: Path, data: bytes) -> Any:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(state / "control.sock"))
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as stream:
            return json.loads(stream.readline())


def test_only_its_owner_may_open_it(state: Path) -> None:
    assert stat.S_IMODE((state / "control.sock").stat().st_mode) == 0o600


def test_it_was_never_open_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the umask: nobody is let in between its making and its mode."""
    listening: list[int] = []
    started = asyncio.start_unix_server

    async def start(*args: Any, **more: Any) -> asyncio.Server:
        listening.append(stat.S_IMODE((tmp_path / "control.sock").stat().st_mode))
        return await started(*args, **more)

    monkeypatch.setattr("asyncio.start_unix_server", start)

    async def scene() -> None:
        server = ControlServer(tmp_path / "control.sock", handle)
        await server.start()
        await server.stop()

    asyncio.run(scene())
    assert listening == [0o600]


def test_a_request_is_answered(state: Path) -> None:
    assert ask(state, {"command": "echo", "name": "b\u00fccher"}) == {"command": "echo", "name": "b\u00fccher"}


def test_the_engines_error_is_the_commands_error(state: Path) -> None:
    with pytest.raises(InterfaceError, match="There is no eth9") as caught:
        ask(state, {"command": "refuse"})
    assert caught.value.hint == "ip link shows them."


def test_a_fault_of_the_engine_is_said_and_ends_nothing(state: Path) -> None:
    with pytest.raises(SallyportError, match="The engine failed at this command") as caught:
        ask(state, {"command": "break"})
    assert type(caught.value) is SallyportError
    assert ask(state, {"command": "echo"}) == {"command": "echo"}


@pytest.mark.parametrize(
    "data",
    [b"\n", b"{", b"\xff\xfe\n", b"7\n", b"[]\n", b"{}\n", b'{"command": 7}\n', b'{"command": null}\n', b"[" * 9000],
)
def test_nonsense_is_answered_as_such(state: Path, data: bytes) -> None:
    answer = raw(state, data)
    assert answer["error"] == "UsageError"
    assert answer["message"].startswith("The request ")


def test_a_request_without_an_end_costs_the_engine_nothing(state: Path) -> None:
    with socket.socket(socket.AF_UNIX) as endless:
        endless.connect(str(state / "control.sock"))
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            endless.sendall(b" " * (64 << 20))
    assert ask(state, {"command": "echo"}) == {"command": "echo"}


def test_a_request_too_long_is_refused_before_it_is_sent(state: Path) -> None:
    with pytest.raises(UsageError, match="longer than"):
        ask(state, {"command": "echo", "reason": "x" * (1 << 20)})


def test_a_client_that_goes_away_disturbs_nobody(state: Path) -> None:
    for data in (b"", b'{"command"', b'{"command": "echo"}\n'):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(state / "control.sock"))
            client.sendall(data)
    assert ask(state, {"command": "echo"}) == {"command": "echo"}


def test_a_socket_that_a_crash_left_behind_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(tmp_path / "control.sock"))

    async def scene() -> Any:
        server = ControlServer(tmp_path / "control.sock", handle)
        await server.start()
        answer = await asyncio.to_thread(ask, tmp_path, {"command": "echo"})
        await server.stop()
        return answer

    assert asyncio.run(scene()) == {"command": "echo"}


def test_a_path_that_no_socket_can_have_is_said(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    with pytest.raises(StateError, match="control socket"):
        asyncio.run(ControlServer(folder / "control.sock", handle).start())


def test_no_engine(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere", tmp_path / ("d" * 120)):
        with pytest.raises(EngineAbsentError, match="No engine answers") as caught:
            ask(folder, {"command": "status"})
        assert "--state-dir" in caught.value.hint


@pytest.mark.parametrize("answer", [b"", b"nonsense\n", b"7\n", b"[]\n", b"{}\n", b'"error"\n'])
def test_whoever_answers_nonsense_is_no_engine(tmp_path: Path, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control.sock"))
        listener.listen()

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(65_536)
                client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(EngineAbsentError):
            ask(tmp_path, {"command": "status"})
        thread.join()


def test_a_socket_of_somebody_else_asks_for_more_privilege(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forbidden(socket.socket):
        def connect(self, _: object) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("socket.socket", Forbidden)
    with pytest.raises(PrivilegeError, match="may not be opened"):
        ask(tmp_path, {"command": "status"})
