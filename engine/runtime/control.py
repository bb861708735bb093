"""The control socket: one JSON request a connection, one JSON answer. Local, mode 0600, in the state directory.

{"command": "status"}  ->  {"ok": {...}}  or  {"error": "UsageError", "message": "...", "hint": "..."}
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from engine.errors import EngineAbsentError, PrivilegeError, SallyportError, StateError, UsageError

log = logging.getLogger(__name__)

Handler = Callable[[dict[str, Any]], Awaitable[Any]]
_LONGEST = 1 << 20
_TIMEOUT = 30.0


class ControlServer:
    def __init__(self, path: Path, handle: Handler) -> None:
        self._path = path
        self._handle = handle
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.unlink(missing_ok=True)
            # Nobody can connect before it listens, and until then the mode is set.
            listener.bind(str(self._path))
            self._path.chmod(0o600)
        except OSError as error:
            listener.close()
            raise StateError(
                f"The control socket {self._path} cannot be made: {error.strerror or error}",
                hint="Give a shorter path, in a directory that root can write, with --state-dir.",
            ) from error
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=_LONGEST)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), _TIMEOUT)
            writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
            await writer.drain()
        except (OSError, ValueError, asyncio.TimeoutError):
            pass  # a client that went away, never asked, or never came to an end
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            return {"ok": await self._handle(_request(line))}
        except SallyportError as error:
            return {"error": type(error).__name__, "message": error.message, "hint": error.hint}
        except Exception as error:
            log.exception("a command failed")
            return {"error": "SallyportError", "message": f"The engine failed at this command: {error!r}", "hint": ""}

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)


def ask(state_dir: Path, request: dict[str, Any]) -> Any:
    """Ask the engine of a state directory. EngineAbsentError when none answers; the engine's own error otherwise."""
    path = state_dir / "control.sock"
    question = json.dumps(request).encode() + b"\n"
    if len(question) > _LONGEST:
        raise UsageError(f"The request is longer than {_LONGEST} bytes", hint="Shorten its reason.")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(_TIMEOUT)
            client.connect(str(path))
            client.sendall(question)
            with client.makefile("rb") as stream:
                line = stream.readline()
        answer = json.loads(line)
        if not isinstance(answer, dict) or not {"ok", "error"} & answer.keys():
            raise ValueError("no answer of an engine")
    except PermissionError as error:
        raise PrivilegeError(
            f"{path} may not be opened", hint="Run it as the user who runs the engine: root."
        ) from error
    except (OSError, ValueError) as error:
        raise EngineAbsentError(
            f"No engine answers for the state directory {state_dir}",
            hint="Start one with `sallyport run`, or give its directory with --state-dir.",
        ) from error
    if "error" in answer:
        kinds = {kind.__name__: kind for kind in _family(SallyportError)}
        raise kinds.get(answer["error"], SallyportError)(answer.get("message", "?"), hint=answer.get("hint", ""))
    return answer["ok"]


def _request(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError("The request is no JSON") from error
    if not isinstance(request, dict) or not isinstance(request.get("command"), str):
        raise UsageError("The request has no command")
    return request


def _family(kind: type[SallyportError]) -> list[type[SallyportError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in _family(child))]
