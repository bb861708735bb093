"""Who is behind this host, and what appears beside its interfaces."""

from __future__ import annotations

from functools import partial

from engine.lab.container import CONTAINER, CONTAINER6, LATE, LATE_SERVER, LATE_SERVER_DEVICE, add_late_wire
from engine.lab.lab import Lab
from engine.lab.scenario import Scenario, Sight
from engine.lab.scenarios.names import ALLOWED, DENIED_NAME
from engine.lab.topology import SHOP, SHOP6
from engine.lab.waiting import until

_NOTICE_SECONDS = 120.0


def _container(lab: Lab, saw: Sight) -> None:
    for label, source, address in (("IPv4", CONTAINER, SHOP), ("IPv6", CONTAINER6, SHOP6)):
        # The one that may asks first and last: what it was told must not reach the one that may not.
        for who, place, may in (("the shop", lab.shop, True), ("another", lab.other, False), ("again", lab.shop, True)):
            lab.arrived(address)
            answer = lab.curl(ALLOWED, address, place=place)
            saw((answer == ALLOWED) is may, f"{label}, {who}: {answer}")
            if not may:
                saw(lab.arrived(address).silence, "no SYN arrived")
        denials = until(partial(_denials, lab, source, address))
        saw(denials == {lab.curl_path}, f"denied in the log: {', '.join(denials) or 'nobody'}")
    lab.arrived()
    answer = lab.curl(DENIED_NAME, place=lab.shop)
    arrived = lab.arrived()
    saw(answer != DENIED_NAME and arrived.nothing, f"a denied name: {answer}, {arrived.bytes} bytes arrived")


def _denials(lab: Lab, source: str, address: str) -> set[str]:
    """The programs that were denied this, by the log."""
    return {
        each.exe
        for each in lab.gate.entries()
        if (each.type, each.source, each.address, each.verdict) == ("decision", source, address, "deny")
    }


def _late(lab: Lab, saw: Sight) -> None:
    add_late_wire(lab.net)
    lab.server.ask("capture", device=LATE_SERVER_DEVICE)
    guarded = until(lambda: LATE in lab.gate.status()["interfaces"], _NOTICE_SECONDS)
    saw(guarded, f"{LATE} is {'guarded' if guarded else 'not guarded'}")
    answer = lab.curl(ALLOWED, LATE_SERVER)
    saw(answer == ALLOWED and not lab.arrived(LATE_SERVER).silence, f"an allowed name: {answer}")
    answer = lab.curl(DENIED_NAME, LATE_SERVER)
    arrived = lab.arrived(LATE_SERVER)
    saw(answer != DENIED_NAME and arrived.nothing, f"a denied one: {answer}, {arrived.bytes} bytes arrived")
    logged = until(
        lambda: [each for each in lab.gate.entries() if each.type == "alert" and LATE in each.detail.get("summary", "")]
    )
    saw(bool(logged), f"in the log: {logged[0].detail['summary'] if logged else 'nothing'}")


SCENARIOS = (
    Scenario("a container behind the host", "allowed by its control group, another denied", _container),
    Scenario("an interface that appears is guarded", "what is denied does not leave by it", _late),
)
