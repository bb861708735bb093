"""Alerts to a real receiver that fails, hangs, resets and recovers: in order, none lost, each one told once more
rather than never."""

from __future__ import annotations

import asyncio
import base64
import datetime
import hashlib
import hmac
import ipaddress
import json
import os
import ssl
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from engine.alerts.alert import Alert, Kind, Severity
from engine.alerts.dispatcher import Dispatcher
from engine.alerts.sink import UndeliverableError
from engine.alerts.webhook import Backoff, WebhookSink
from engine.errors import ConfigError

if TYPE_CHECKING:
    from tests.unit.alerts.conftest import Receiver

Start = Callable[..., "Receiver"]
BEARER = "s3cret"
QUICK = Backoff(first=0.001, most=0.01)


def alert(summary: str) -> Alert:
    return Alert(1, Kind.POLICY_BROKEN, Severity.WARNING, summary)


def sink(receiver: Receiver, **more: object) -> WebhookSink:
    return WebhookSink(receiver.url, **{"backoff": QUICK, "timeout": 10.0, **more})  # type: ignore[arg-type]


async def deliver(target: WebhookSink, *alerts: Alert) -> None:
    try:
        for one in alerts:
            await target.deliver(one)
    finally:
        await target.close()


def test_a_receiver_that_fails_in_every_way_and_recovers_gets_every_alert_in_order(start_receiver: Start) -> None:
    receiver = start_receiver(503, "reset", 500, 204, "slam", 429, 408, "reset", "reset", 204, 502)
    wanted = [f"alert {number}" for number in range(12)]

    async def main() -> Dispatcher:
        dispatcher = Dispatcher([sink(receiver)], window=0)
        dispatcher.start()
        for summary in wanted:
            dispatcher.submit(alert(summary))
        await dispatcher.close(30)
        return dispatcher

    (statistics,) = asyncio.run(main()).statistics()
    assert receiver.summaries() == wanted
    assert (statistics.sent, statistics.failed, statistics.dropped, statistics.queued) == (12, 0, 0, 0)


def test_a_hanging_receiver_costs_a_timeout_and_the_same_alert_comes_again_with_the_same_id(
    start_receiver: Start,
) -> None:
    receiver = start_receiver("hang", "drip", 204)
    target = sink(receiver, timeout=0.2)
    asyncio.run(deliver(target, alert("only")))
    assert receiver.summaries() == ["only"]
    assert len({request["webhook-id"] for request in receiver.requests}) == 1
    assert len(set(receiver.bodies)) == 1
    assert len(receiver.requests) == 3
    assert target.retries == 2


def test_a_refused_alert_is_not_tried_again_but_counted_and_told_by_the_next(start_receiver: Start) -> None:
    receiver = start_receiver(400, (301, {"Location": "http://localhost/"}), 204, 204)

    async def main() -> Dispatcher:
        dispatcher = Dispatcher([sink(receiver)], window=0)
        dispatcher.start()
        for summary in ("refused", "redirected", "taken", "after"):
            dispatcher.submit(alert(summary))
        await dispatcher.close(30)
        return dispatcher

    (statistics,) = asyncio.run(main()).statistics()
    assert len(receiver.requests) == 4
    assert [(body["data"]["summary"], body["data"]["lost_before"]) for body in receiver.taken] == [
        ("taken", 2),
        ("after", 0),
    ]
    assert (statistics.sent, statistics.failed) == (2, 2)
    assert "answered 301" in statistics.last_error


def test_retry_after_is_heeded_within_the_bound() -> None:
    backoff = Backoff(first=1, most=8)
    assert backoff.delay(1, 5.0) == 5.0
    assert backoff.delay(1, 3600.0) == 8
    for tries in range(1, 2000):
        whole = min(8, 2 ** (tries - 1))
        assert whole / 2 <= backoff.delay(tries, None) <= whole


def test_retry_after_of_an_answer_reaches_the_pause(start_receiver: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = start_receiver((429, {"Retry-After": "7"}), (503, {"Retry-After": "soon"}))
    asked: list[float | None] = []
    monkeypatch.setattr(Backoff, "delay", lambda _self, _tries, wait: asked.append(wait) or 0)
    asyncio.run(deliver(sink(receiver), alert("x")))
    assert asked == [7.0, None]


def test_one_connection_serves_many_alerts(start_receiver: Start) -> None:
    receiver = start_receiver()
    asyncio.run(deliver(sink(receiver), *(alert(str(number)) for number in range(20))))
    assert len(receiver.taken) == 20
    assert receiver.connections == 1


def test_a_kept_connection_that_the_receiver_closed_costs_no_pause(start_receiver: Start) -> None:
    receiver = start_receiver("slam", "slam", 204)
    target = sink(receiver)
    asyncio.run(deliver(target, alert("0"), alert("1"), alert("2")))
    assert receiver.summaries() == ["0", "1", "2"]
    assert target.retries == 0


def test_a_receiver_checks_the_signature_with_the_standard_scheme(start_receiver: Start) -> None:
    receiver = start_receiver()
    key = os.urandom(32)
    target = sink(receiver, key=key, token=BEARER, clock=lambda: 1_700_000_000.9)
    asyncio.run(deliver(target, alert("x")))
    (request,), (body,) = receiver.requests, receiver.bodies
    signed = f"{request['webhook-id']}.1700000000.".encode() + body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert request["webhook-signature"] == f"v1,{expected}"
    assert request["webhook-timestamp"] == "1700000000"
    assert request["webhook-id"] == json.loads(body)["data"]["id"]
    assert request["Authorization"] == f"Bearer {BEARER}"
    assert request["Content-Type"] == "application/json"


def test_without_secrets_nothing_is_claimed(start_receiver: Start) -> None:
    receiver = start_receiver()
    asyncio.run(deliver(sink(receiver), alert("x")))
    assert not {"Authorization", "webhook-signature"} & set(receiver.requests[0])


def _certificate(folder: Path, name: x509.GeneralName) -> tuple[Path, ssl.SSLContext]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "receiver")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "ca.pem").write_bytes(pem)
    (folder / "both.pem").write_bytes(pem + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "both.pem")
    return folder / "ca.pem", context


def test_tls_with_the_right_authority_delivers(start_receiver: Start, tmp_path: Path) -> None:
    authority, context = _certificate(tmp_path, x509.DNSName("localhost"))
    receiver = start_receiver(tls=context)
    asyncio.run(deliver(WebhookSink.open(receiver.url, ca_file=authority), alert("x")))
    assert receiver.summaries() == ["x"]


@pytest.mark.parametrize(("name", "trusted"), [("localhost", False), ("elsewhere.example", True)])
def test_tls_without_trust_or_with_another_name_delivers_nothing(
    start_receiver: Start, tmp_path: Path, name: str, trusted: bool
) -> None:
    authority, context = _certificate(tmp_path, x509.DNSName(name))
    receiver = start_receiver(tls=context)
    tls = ssl.create_default_context(cafile=str(authority)) if trusted else None

    async def main() -> WebhookSink:
        failed = asyncio.Event()

        class Watched(Backoff):
            def delay(self, tries: int, asked: float | None) -> float:
                if tries == 2:
                    failed.set()
                return 0.0

        target = sink(receiver, tls=tls, token=BEARER, backoff=Watched())
        attempt = asyncio.ensure_future(target.deliver(alert("x")))
        await failed.wait()
        attempt.cancel()
        await asyncio.gather(attempt, return_exceptions=True)
        await target.close()
        return target

    assert "CERTIFICATE_VERIFY_FAILED" in asyncio.run(main()).last_problem
    assert receiver.requests == []


def test_submitting_never_waits_for_a_receiver_that_hangs_and_what_overflows_is_told(
    start_receiver: Start,
) -> None:
    receiver = start_receiver("hang")
    arrived = threading.Event()
    receiver.on_request = arrived.set

    async def main() -> Dispatcher:
        dispatcher = Dispatcher([sink(receiver, timeout=0.3)], queue=5, window=0)
        dispatcher.start()
        dispatcher.submit(alert("alert 0"))
        await asyncio.get_running_loop().run_in_executor(None, arrived.wait)
        for number in range(1, 100):
            dispatcher.submit(alert(f"alert {number}"))
        (during,) = dispatcher.statistics()
        assert (during.queued, during.dropped, during.sent) == (5, 95, 0)
        await dispatcher.close(30)
        return dispatcher

    (statistics,) = asyncio.run(main()).statistics()
    assert [(body["data"]["summary"], body["data"]["lost_before"]) for body in receiver.taken] == [
        ("alert 0", 0),
        ("alert 1", 95),
        ("alert 2", 0),
        ("alert 3", 0),
        ("alert 4", 0),
    ]
    assert (statistics.sent, statistics.dropped, statistics.queued) == (5, 95, 0)


def test_a_process_with_a_hanging_receiver_ends_when_it_is_told_to(start_receiver: Start) -> None:
    receiver = start_receiver("hang", "hang")
    program = textwrap.dedent(f"""
        import asyncio
        from engine.alerts.alert import Alert, Kind, Severity
        from engine.alerts.dispatcher import Dispatcher
        from engine.alerts.webhook import WebhookSink
        async def main():
            dispatcher = Dispatcher([WebhookSink({receiver.url!r}, timeout=300)], window=0)
            dispatcher.start()
            dispatcher.submit(Alert(1, Kind.LOSS, Severity.INFO, "x"))
            await dispatcher.close(0.5)
            print(dispatcher.statistics()[0].dropped)
        asyncio.run(main())
    """)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=True)
    assert run.stdout == b"1\n"
    assert run.stderr == b""


def _file(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    file = folder / "secret"
    file.write_bytes(content)
    file.chmod(mode)
    return file


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (b"", 0o600, "empty"),
        (b"two words", 0o600, "cannot stand in a header"),
        (b"line\nline", 0o600, "cannot stand in a header"),
        ("schlüssel".encode(), 0o600, "cannot stand in a header"),
        (b"token", 0o644, "Everybody on this host"),
    ],
)
def test_a_token_file_that_is_not_usable_is_refused(tmp_path: Path, content: bytes, mode: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        WebhookSink.open("https://h/", token_file=_file(tmp_path, content, mode))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("content", "words"), [(b"short", "5 bytes"), (b"whsec_!!!", "not base64"), (b"whsec_AAAA", "3 bytes")]
)
def test_a_weak_or_damaged_signing_key_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        WebhookSink.open("https://h/", hmac_key_file=_file(tmp_path, content))


def test_both_spellings_of_a_key_sign_alike(start_receiver: Start, tmp_path: Path) -> None:
    key = b"0123456789abcdef0123456789abcdef"
    signatures = []
    for content in (key + b"\n", b"whsec_" + base64.b64encode(key)):
        receiver = start_receiver()
        target = WebhookSink.open(receiver.url, hmac_key_file=_file(tmp_path, content))
        target._clock = lambda: 1.0
        asyncio.run(deliver(target, Alert(1, Kind.LOSS, Severity.INFO, "x", id="same")))
        signatures.append(receiver.requests[0]["webhook-signature"])
    assert signatures[0] == signatures[1]


def test_a_missing_secret_or_authority_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        WebhookSink.open("https://h/", token_file=tmp_path / "absent")
    with pytest.raises(ConfigError, match="cannot be used"):
        WebhookSink.open("https://h/", ca_file=tmp_path / "absent")


def test_a_receiver_that_is_not_there_is_tried_until_it_is(start_receiver: Start) -> None:
    async def main() -> None:
        failed = asyncio.Event()

        class Watched(Backoff):
            def delay(self, tries: int, asked: float | None) -> float:
                failed.set()
                return 0.001

        gone = start_receiver()
        target = sink(gone, backoff=Watched())
        target._connection.port = 1
        attempt = asyncio.ensure_future(target.deliver(alert("x")))
        await failed.wait()
        target._connection.port = int(gone.url.split(":")[2].split("/")[0])
        await attempt
        await target.close()
        assert gone.summaries() == ["x"]

    asyncio.run(main())


def test_an_answer_without_end_is_not_read_to_its_end(start_receiver: Start) -> None:
    receiver = start_receiver((404, {"X-Filler": "a" * 30000}))
    with pytest.raises(UndeliverableError, match="404"):
        asyncio.run(deliver(sink(receiver), alert("x")))


def test_an_ipv6_receiver_is_reached_by_its_literal() -> None:
    target = WebhookSink("http://[::1]:8080/x")
    assert ipaddress.ip_address(target._host).version == 6
