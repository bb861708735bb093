"""Alerts posted as JSON to a receiver: in order, at least once, signed.

The standard library's client in one thread, not an asynchronous one: it costs 1.3 MiB of memory where
aiohttp costs 13, out of the 60 the engine may have. The payload and the headers `webhook-id` (the
idempotency key), `webhook-timestamp` and `webhook-signature` are those of the Standard Webhooks
specification 1.0.0, so that receivers can check them with a library that exists.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import http.client
import json
import logging
import os
import random
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from engine.alerts.alert import Alert
from engine.alerts.sink import Courier, UndeliverableError
from engine.errors import ConfigError

log = logging.getLogger(__name__)

RETRIED = frozenset({408, 429})
"""Of the 4xx answers, those that speak of the moment and not of the alert."""
ANSWER_BYTES = 16384
SECRET_BYTES = 65536
SHORTEST_KEY = 24


@dataclass(frozen=True)
class Backoff:
    """Seconds before another try: `first`, doubled each time up to `most`, then a random part between half
    and all of it, so that many hosts do not come back to a receiver at the same moment."""

    first: float = 0.5
    most: float = 60.0

    def delay(self, tries: int, asked: float | None) -> float:
        """Return the pause after this many tries; `asked` is what the receiver's Retry-After wants, within
        `most`."""
        whole = min(self.most, self.first * 2.0 ** min(tries - 1, 32))
        pause = random.SystemRandom().uniform(whole / 2, whole)
        return pause if asked is None else max(pause, min(asked, self.most))


@dataclass(frozen=True)
class _Answer:
    status: int
    retry_after: float | None


class WebhookSink:
    """One receiver. `token` goes into `Authorization: Bearer`; `key` signs. `timeout` bounds a whole try,
    in seconds.

    Redirects are not followed (the token would follow too) and proxies from the environment are not used.
    An answer 2xx is a delivery; other 4xx than 408 and 429, and 3xx, are final; everything else is tried
    again for as long as the engine runs.
    """

    name = "webhook"

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        key: bytes = b"",
        tls: ssl.SSLContext | None = None,
        timeout: float = 10.0,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = tls or ssl.create_default_context()
            self._connection = http.client.HTTPSConnection(self._host, parts.port, timeout=timeout, context=context)
        else:
            self._connection = http.client.HTTPConnection(self._host, parts.port, timeout=timeout)
        self._token = token
        self._key = key
        self._timeout = timeout
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._courier = Courier("alerts-webhook")
        self.retries = 0
        self.last_problem = ""

    @classmethod
    def open(
        cls,
        url: str,
        *,
        token_file: Path | None = None,
        hmac_key_file: Path | None = None,
        ca_file: Path | None = None,
        timeout: float = 10.0,
    ) -> WebhookSink:
        """Make the sink with its secrets read from files. Raises ConfigError when one of them is not
        usable."""
        token = ""
        if token_file is not None:
            token = _secret(token_file).decode("ascii", "replace")
            if not token.isascii() or not token.isprintable() or " " in token:
                raise ConfigError(
                    f"The token in {token_file} cannot stand in a header.",
                    hint="The file holds the token on one line and nothing else.",
                )
        key = _signing_key(hmac_key_file) if hmac_key_file is not None else b""
        tls = None
        if ca_file is not None:
            try:
                tls = ssl.create_default_context(cafile=str(ca_file))
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(
                    f"The certificates in {ca_file} cannot be used: {error}.",
                    hint="The file holds CA certificates as PEM.",
                ) from error
        return cls(url, token=token, key=key, tls=tls, timeout=timeout)

    async def deliver(self, alert: Alert) -> None:
        body = json.dumps(alert.document(), separators=(",", ":"), allow_nan=False).encode()
        tries = 0
        while True:
            tries += 1
            asked = None
            try:
                answer = await asyncio.wait_for(self._try(alert.id, body), self._timeout)
            except (TimeoutError, asyncio.TimeoutError):
                # The thread may still sit in a read: cut its connection, so that it is free for the next try.
                self._cut()
                problem = f"no answer within {self._timeout:g} s"
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if 200 <= answer.status < 300:
                    return
                problem = f"answered {answer.status}"
                if 300 <= answer.status < 500 and answer.status not in RETRIED:
                    raise UndeliverableError(f"The webhook at {self._host} {problem}.")
                asked = answer.retry_after
            self.retries += 1
            self.last_problem = problem
            log.warning("the webhook at %s: %s; trying again (try %d)", self._host, problem, tries + 1)
            await asyncio.sleep(self._backoff.delay(tries, asked))

    async def close(self) -> None:
        self._cut()
        self._courier.close()

    async def _try(self, identifier: str, body: bytes) -> _Answer:
        headers = self._headers(identifier, body)
        return await self._courier.run(lambda: self._post(body, headers))

    def _headers(self, identifier: str, body: bytes) -> dict[str, str]:
        stamp = str(int(self._clock()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "sallyport",
            "webhook-id": identifier,
            "webhook-timestamp": stamp,
        }
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if self._key:
            signed = f"{identifier}.{stamp}.".encode() + body
            digest = hmac.new(self._key, signed, hashlib.sha256).digest()
            headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
        return headers

    def _post(self, body: bytes, headers: dict[str, str]) -> _Answer:
        kept = self._connection.sock is not None
        try:
            return self._exchange(body, headers)
        except (ConnectionError, http.client.RemoteDisconnected):
            # A receiver may close a kept connection at any time. That says nothing about how it is: one
            # fresh try.
            if not kept:
                raise
            return self._exchange(body, headers)

    def _exchange(self, body: bytes, headers: dict[str, str]) -> _Answer:
        finished = False
        try:
            self._connection.request("POST", self._target, body, headers)
            response = self._connection.getresponse()
            rest = response.read(ANSWER_BYTES)
            wait = response.headers.get("Retry-After", "")
            # What is left of a longer answer would be read as the next one's beginning.
            finished = len(rest) < ANSWER_BYTES
            return _Answer(response.status, float(wait) if wait.isascii() and wait.isdigit() else None)
        finally:
            if not finished:
                self._connection.close()

    def _cut(self) -> None:
        current = self._connection.sock
        if current is not None:
            try:
                # The plain socket's method: that of SSLSocket would take the TLS state away under the thread.
                socket.socket.shutdown(current, socket.SHUT_RDWR)
            except OSError as error:
                log.debug("the webhook's connection was gone already: %s", error)


def _secret(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            data = stream.read(SECRET_BYTES + 1).strip()
    except OSError as error:
        raise ConfigError(
            f"The secret {file} cannot be read: {error.strerror}.",
            hint="The engine's user must be able to read it.",
        ) from error
    if mode & 0o007:
        raise ConfigError(f"Everybody on this host may use the secret {file}.", hint=f"chmod o= {file}")
    if not 0 < len(data) <= SECRET_BYTES:
        raise ConfigError(
            f"The secret {file} is empty or too long.", hint="The file holds the secret and nothing else."
        )
    return data


def _signing_key(file: Path) -> bytes:
    """A key as the specification writes it (`whsec_` and base64), else the file's bytes, stripped."""
    key = _secret(file)
    if key.startswith(b"whsec_"):
        try:
            key = base64.b64decode(key[6:], validate=True)
        except binascii.Error as error:
            raise ConfigError(
                f"The key in {file} begins with whsec_ and is not base64.", hint="Copy it again, in full."
            ) from error
    if len(key) < SHORTEST_KEY:
        raise ConfigError(
            f"The key in {file} has {len(key)} bytes and needs at least {SHORTEST_KEY}.",
            hint=f"Make one with: (umask 077; openssl rand -base64 32 > {file})",
        )
    return key
