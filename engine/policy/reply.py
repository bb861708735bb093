"""Values of a rule become a reply: the same reading for both evaluators."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.policy.frames import Reply


def values_reply(deny: Any, reject: Any, allow: Any, ttl: Any) -> Reply:
    """Build the reply from the rule's values; what has the wrong type is an error, not an empty answer."""
    messages: list[list[str]] = []
    for name, value in (("deny", deny), ("reject", reject), ("allow", allow)):
        if not isinstance(value, list):
            return Reply(error=f"{name} is not a set of messages")
        messages.append(
            sorted(
                item if isinstance(item, str) else msgspec.json.encode(item, order="sorted").decode() for item in value
            )
        )
    seconds: float | None = None
    if ttl is not msgspec.UNSET and ttl is not None:
        if isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or not ttl >= 0:
            return Reply(error="ttl is not a number of seconds")
        seconds = float(ttl)
    return Reply(True, messages[0], messages[1], messages[2], seconds)


def decision_reply(value: Any) -> Reply:
    """Read `data.sallyport.decision`: a verdict as text, or an object with verdict, reasons and ttl."""
    if isinstance(value, str):
        value = {"verdict": value}
    if not isinstance(value, dict):
        return Reply(error="decision is undefined" if value is msgspec.UNSET else "decision is no verdict")
    unknown = sorted(set(value) - {"verdict", "reasons", "ttl"})
    if unknown:
        return Reply(error=f"decision has the unknown field {unknown[0]}")
    verdict = value.get("verdict")
    if verdict not in ("allow", "deny", "reject"):
        return Reply(error="decision has no verdict of allow, deny, reject")
    reasons = value.get("reasons", [])
    said = reasons or [f"the decision is {verdict}"]
    return values_reply(
        said if verdict == "deny" else [],
        said if verdict == "reject" else [],
        said if verdict == "allow" else [],
        value.get("ttl", msgspec.UNSET),
    )
