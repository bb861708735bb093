"""The lab's own TLS client, against a server on loopback that notes how its hello arrives."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from engine.lab.dialogue import Dialogue, fetch
from engine.lab.place import Place
from engine.lab.servers import NAMES, make_certificates

NAME = NAMES[0]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("certificates")
    make_certificates(work, Place(work))
    return work


class Server:
    """Answers every request with the body `said`, until the client goes; or so many, and takes its leave."""

    def __init__(self, work: Path, answers: int = -1) -> None:
        self._answers = answers
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(work / "server.pem", work / "server.key")
        self._context.sni_callback = lambda _socket, name, _context: self.names.append(name)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.names: list[str | None] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            # A client that does not believe the certificate is gone before the handshake ends.
            with connection, suppress(OSError), self._context.wrap_socket(connection, server_side=True) as tls:
                left = self._answers
                while left and tls.recv(4096).endswith(b"\r\n\r\n"):
                    tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nsaid\n")
                    left -= 1
                tls.unwrap()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def server(certificates: Path) -> Iterator[Server]:
    serving = Server(certificates)
    yield serving
    serving.close()


def how(work: Path, port: int) -> dict[str, object]:
    return {"name": NAME, "address": "127.0.0.1", "port": port, "ca": str(work / "ca.pem")}


@pytest.mark.parametrize("pieces", [1, 3, 7])
@pytest.mark.parametrize("padding", [0, 1500, 6000])
def test_a_hello_in_pieces_is_still_one_hello(certificates: Path, server: Server, pieces: int, padding: int) -> None:
    answer = fetch(**how(certificates, server.port), pieces=pieces, padding=padding)
    assert answer["answer"] == "said"
    assert server.names == [NAME]
    assert answer["hello"] > padding


def test_a_connection_that_is_kept_can_be_asked_again(certificates: Path, server: Server) -> None:
    dialogue = Dialogue()
    first = dialogue.begin(**how(certificates, server.port))  # type: ignore[arg-type]
    assert [first["answer"], dialogue.request()["answer"], dialogue.request()["answer"]] == ["said"] * 3
    dialogue.close()


def test_a_server_that_took_its_leave_is_no_endless_wait(certificates: Path) -> None:
    server = Server(certificates, answers=1)
    dialogue = Dialogue()
    assert dialogue.begin(**how(certificates, server.port))["answer"] == "said"  # type: ignore[arg-type]
    answer = dialogue.request()
    assert (answer["error"], answer["step"]) == ("ECONNRESET", "request")
    dialogue.close()
    server.close()


def test_a_refused_connection_is_told_with_its_step(certificates: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    answer = fetch(**how(certificates, port))
    assert (answer["error"], answer["step"]) == ("ECONNREFUSED", "connect")


def test_silence_after_the_hello_is_a_timeout_at_the_handshake(certificates: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        answer = fetch(**how(certificates, silent.getsockname()[1]), seconds=0.05)
    assert (answer["error"], answer["step"]) == ("timeout", "handshake")


def test_a_server_of_another_authority_is_not_believed(certificates: Path, server: Server, tmp_path: Path) -> None:
    make_certificates(tmp_path, Place(tmp_path))
    answer = fetch(**how(tmp_path, server.port))
    assert (answer["error"], answer["step"]) == ("CERTIFICATE_VERIFY_FAILED", "handshake")


def test_the_certificate_is_good_for_every_name_of_the_lab_and_no_other(certificates: Path) -> None:
    for name, holds in [*((name, True) for name in NAMES), ("example", False)]:
        words = ["openssl", "verify", "-CAfile", f"{certificates}/ca.pem", "-verify_hostname", name, "-x509_strict"]
        checked = subprocess.run([*words, f"{certificates}/server.pem"], capture_output=True, text=True, check=False)
        assert (checked.returncode == 0) is holds, checked.stderr
