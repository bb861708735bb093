"""The OPA evaluator: a real OPA server through opa-python-client, one call for all rules.

Each rule gets its own filtered input by `with input as`, in a module that is generated and put beside the policy. A
built-in function that fails is an error (`strict-builtin-errors`), as in the embedded evaluator: OPA alone would
take it for undefined, which a deny rule reads as "no objection".

The client is used with retries=0 (its own would hold a flow for 0.9 s) and rego_compat=False (it would rewrite a
refused policy by regular expressions and load the result); proxies from the environment are not used (aiohttp's
trust_env is off by default).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec
from opa_client import AsyncOpaClient
from opa_client.errors import ConnectionsError, DeletePolicyError, PatchDataError, RegoParseError

from engine.errors import ConfigError, EvaluatorError
from engine.policy.bundle import Bundle
from engine.policy.embedded import to_answer
from engine.policy.evaluator import Answer, Question, failed
from engine.policy.frames import Entry, Part, Reply
from engine.policy.opa_server import OpaServer
from engine.policy.reply import decision_reply, values_reply
from engine.policy.rule import Rule

_HUNG = 3
"""Calls in a row without an answer after which a server of our own is given up."""
LOAD_TIMEOUT = 30.0
_HOST_MODULE = "sallyport-host"
_MODULE_PREFIX = "sallyport-module-"
_T = TypeVar("_T")
_CLIENT_ERRORS = (
    aiohttp.ClientError, asyncio.TimeoutError, ConnectionsError, DeletePolicyError, PatchDataError, RegoParseError,
    OSError, ValueError, TypeError,
)  # fmt: skip
"""The client has no common base: these are what its methods were seen or read to raise."""


class OpaEvaluator:
    """`url` of a server to use (`http://host:port` or https, no path) with its `token`; without, one is started with
    the program `binary`. Raises ConfigError for an unusable url.

    `timeout`: seconds for a call. `restarts` counts servers of our own that ended or hung and were started again.
    """

    name = "opa"

    def __init__(
        self,
        *,
        url: str = "",
        token: str = "",
        binary: str = "opa",
        timeout: float = 0.5,
    ) -> None:
        self._host, self._port, self._tls = _split(url) if url else ("", 0, False)
        self._token = token
        self._binary = binary
        self._timeout = timeout
        self._server: OpaServer | None = None
        self._asking: AsyncOpaClient | None = None
        self._loaded: tuple[Bundle, tuple[Rule, ...]] | None = None
        self._rules: dict[str, Rule] = {}
        self._restart: asyncio.Task[None] | None = None
        self._unanswered = 0
        """Calls in a row that timed out."""
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The server's process id when it is our own."""
        return self._server.pid if self._server is not None else None

    async def expect(self, parts: Sequence[Part]) -> None:
        """Do nothing: a server would have to stand idle."""

    async def load(self, bundle: Bundle, rules: Sequence[Rule], parts: Sequence[Part] | None = None) -> None:
        """Put a bundle into the server. Raises EvaluatorError.

        A server of our own is new for each load. One that was given is shared by all generations: there the new
        bundle is in force at once.
        """
        before = self._server, self._asking
        server: OpaServer | None = None
        asking: AsyncOpaClient | None = None
        try:
            if not self._host:
                server = await OpaServer.start(self._binary)
            await self._push(server, bundle, rules)
            asking = self._client(server, self._timeout)
            await asking.__aenter__()
        except BaseException:
            if server is not None:
                await asyncio.shield(server.stop())
            raise
        self._server, self._asking = server, asking
        self._rules = {rule.name: rule for rule in rules}
        self._loaded = bundle, tuple(rules)
        self._unanswered = 0
        await _ended(*before)

    def _client(self, server: OpaServer | None, timeout: float) -> AsyncOpaClient:
        host, port, token = (
            ("127.0.0.1", server.port, server.token) if server is not None else (self._host, self._port, self._token)
        )
        return AsyncOpaClient(
            host=host, port=port, token=token or None, ssl=self._tls and server is None, retries=0, timeout=timeout
        )

    async def _push(self, server: OpaServer | None, bundle: Bundle, rules: Sequence[Rule]) -> None:
        async with self._client(server, LOAD_TIMEOUT) as client:
            if server is None:
                for name in await _mapped(client.get_policies_list(), "list its policies"):
                    if name == _HOST_MODULE or name.startswith(_MODULE_PREFIX):
                        await _mapped(client.delete_policy(name), f"forget {name}")
            patches = [{"op": "add", "path": f"/{_escaped(key)}", "value": value} for key, value in bundle.data.items()]
            if patches:
                await _mapped(client.patch_data("", patches), "take the data")
            waiting = {f"{_MODULE_PREFIX}{index}": module.text for index, module in enumerate(bundle.modules)}
            # A module that calls another's function is refused until that one is there: in rounds, until none moves.
            while waiting:
                refused = {name: error for name, text in waiting.items() if (error := await _put(client, name, text))}
                if len(refused) == len(waiting):
                    raise next(iter(refused.values()))
                waiting = {name: waiting[name] for name in refused}
            error = await _put(client, _HOST_MODULE, host_module([rule.entry() for rule in rules]))
            if error is not None:
                raise error

    def rouse(self, rules: Sequence[str]) -> None:
        """A server of its own, that sleeps as it likes."""

    async def evaluate(self, questions: Sequence[Question]) -> Sequence[Answer]:
        """Return an answer for each question, in one call; an error of one rule costs a round of single calls."""
        if not questions:
            return []
        if self._server is not None and not self._server.running:
            # As in the embedded evaluator, a call waits for the next server as long as it may take itself.
            await asyncio.wait({self._begin_restart()}, timeout=self._timeout)
        answers = await self._call(questions)
        if answers is None and len(questions) > 1:
            # One rule's error fails the whole call: ask each alone, so that only that one has no answer.
            answers = []
            for question in questions:
                answers += await self._call([question]) or failed([question], _FAILED)
        return answers if answers is not None else failed(questions, _FAILED)

    async def _call(self, questions: Sequence[Question]) -> list[Answer] | None:
        """Return the answers, failed ones when OPA cannot be reached, or None when OPA reports an error inside."""
        client = self._asking
        if client is None:
            return failed(questions, "OPA holds no policy")
        document = {
            "questions": {
                str(index): {
                    "rule": question.rule,
                    "input": msgspec.to_builtins(question.input),
                    "only_target": question.only_target,
                }
                for index, question in enumerate(questions)
            }
        }
        try:
            body = await client.query_rule(
                document, "sallyport_host", "answers", query_params={"strict-builtin-errors": "true"}
            )
        except aiohttp.ClientResponseError as error:
            self._unanswered = 0
            if error.status == 500:
                return None
            return failed(questions, f"OPA answered with HTTP status {error.status}")
        except asyncio.TimeoutError:
            self._unanswered += 1
            if self._server is not None and self._unanswered >= _HUNG:
                # It runs and does not answer: the next one ends it. One late answer alone may be a busy machine's.
                self._begin_restart()
            return failed(questions, f"OPA did not answer within {self._timeout:g} s")
        except _CLIENT_ERRORS as error:
            return failed(questions, f"OPA cannot be reached: {str(error) or type(error).__name__}")
        self._unanswered = 0
        said = body.get("result", {}) if isinstance(body, dict) else {}
        return [self._answer(question, said.get(str(index))) for index, question in enumerate(questions)]

    def _answer(self, question: Question, said: Any) -> Answer:
        rule = self._rules.get(question.rule)
        if rule is None or not isinstance(said, dict) or said.get("asked") is not True:
            return Answer(error=f"no rule named {question.rule} is loaded" if rule is None else "OPA gave no answer")
        return to_answer(_reply(rule.entry(), question, said), rule)

    def _begin_restart(self) -> asyncio.Task[None]:
        if self._restart is None or self._restart.done():
            self.restarts += 1
            self._restart = asyncio.get_running_loop().create_task(self._replace())
        return self._restart

    async def _replace(self) -> None:
        if self._loaded is not None:
            try:
                await self.load(*self._loaded)
            except EvaluatorError:
                # Every question until then has a failed answer, and the next one tries again.
                await asyncio.sleep(1.0)

    async def close(self) -> None:
        """End the client, and the server when it is our own."""
        if self._restart is not None:
            self._restart.cancel()
            await asyncio.wait({self._restart})
        server, asking, self._server, self._asking = self._server, self._asking, None, None
        await _ended(server, asking)


_FAILED = "the rule failed in OPA (a built-in function refused its arguments, or two rules conflict)"


def _split(url: str) -> tuple[str, int, bool]:
    """Return host, port and whether TLS is used; the client knows no path, user or query."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    tls = parts.scheme == "https"
    plain = not (parts.query or parts.fragment or parts.username or parts.password) and parts.path in ("", "/")
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
        raise ConfigError(f"{url} is no address of an OPA server", hint="write http://host:port or https://host:port")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return host, port or (443 if tls else 8181), tls


async def _ended(server: OpaServer | None, client: AsyncOpaClient | None) -> None:
    if client is not None:
        await client.__aexit__(None, None, None)
    if server is not None:
        await server.stop()


async def _mapped(call: Awaitable[_T], what: str) -> _T:
    try:
        return await call
    except _CLIENT_ERRORS as error:
        words = " ".join(str(part) for part in error.args) or type(error).__name__
        if isinstance(error, RegoParseError):
            words = str(error)
        raise EvaluatorError(
            f"OPA did not {what}: {words}", hint="run `sallyport policy check`, and see whether OPA runs"
        ) from error


async def _put(client: AsyncOpaClient, name: str, text: str) -> EvaluatorError | None:
    try:
        await _mapped(client.update_policy_from_string(text, name, rego_compat=False), "take a module")
    except EvaluatorError as error:
        return error
    return None


def _escaped(key: str) -> str:
    """Return a key as a part of a JSON pointer (RFC 6901 section 3)."""
    return key.replace("~", "~0").replace("/", "~1")


def _reply(entry: Entry, question: Question, said: dict[str, Any]) -> Reply:
    if entry.decision:
        return decision_reply(said.get("decision", msgspec.UNSET))
    if entry.target:
        target = said.get("target", False)
        if target is False:
            return Reply(target=False)
        if target is not True:
            return Reply(error="target is neither true nor false")
    if question.only_target:
        return Reply()
    # A set that the rule defines is never absent; if it is, that is no empty answer.
    return values_reply(
        said.get("deny") if entry.deny else [],
        said.get("reject") if entry.reject else [],
        said.get("allow") if entry.allow else [],
        said.get("ttl", msgspec.UNSET),
    )


def host_module(entries: Sequence[Entry]) -> str:
    """Return the module that asks every rule with its own input.

    `answers[id].<word>` is the value of the rule's word for the question `id`; the body of a rule with a target is
    evaluated only where its target is true, as in the embedded evaluator.
    """
    lines = ["package sallyport_host", "", "answers[id].asked := true if some id, _ in input.questions", ""]

    def word(entry: Entry, name: str, conditions: Sequence[str]) -> None:
        lines.append(f"answers[id].{name} := value if {{")
        lines.append("\tsome id, question in input.questions")
        lines.append(f"\tquestion.rule == {msgspec.json.encode(entry.rule).decode()}")
        lines.extend(f"\t{condition}" for condition in conditions)
        lines.append(f"\tvalue := {entry.package}.{name} with input as question.input")
        lines.extend(["}", ""])

    for entry in entries:
        if entry.decision:
            word(entry, "decision", [])
            continue
        body = ["question.only_target == false"]
        if entry.target:
            word(entry, "target", [])
            body.append(f"{entry.package}.target with input as question.input")
        for name in ("deny", "reject", "allow", "ttl"):
            if getattr(entry, name):
                word(entry, name, body)
    return "\n".join(lines)
