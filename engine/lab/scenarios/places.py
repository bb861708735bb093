"""Who is behind this host, and what appears beside its interfaces."""

from __future__ import annotations

from engine.lab.container import CONTAINER, LATE, LATE_SERVER, LATE_SERVER_DEVICE, add_late_wire
from engine.lab.lab import Lab
from engine.lab.scenario import Scenario, Sight
from engine.lab.scenarios.names import ALLOWED, DENIED_NAME
from engine.lab.topology import SERVER, SHOP
from engine.lab.waiting import until

_NOTICE_SECONDS = 30.0


def _container(lab: Lab, saw: Sight) -> None:
    answer = lab.curl(ALLOWED, SHOP, place=lab.shop)
    saw(answer == ALLOWED, f"the shop: {answer}")
    lab.arrived(SHOP)
    answer = lab.curl(ALLOWED, SHOP, place=lab.other)
    arrived = lab.arrived(SHOP)
    saw(answer != ALLOWED and arrived.silence, f"another: {answer}, {arrived.bytes} bytes arrived")
    answer = lab.curl(ALLOWED, SHOP, place=lab.shop)
    saw(answer == ALLOWED, f"the shop again: {answer}")
    lab.arrived(SERVER)
    answer = lab.curl(DENIED_NAME, place=lab.shop)
    arrived = lab.arrived(SERVER)
    saw(answer != DENIED_NAME and arrived.nothing, f"a denied name: {answer}, {arrived.bytes} bytes arrived")
    logged = until(
        lambda: [
            each
            for each in lab.gate.entries()
            if (each.source, each.address, each.verdict) == (CONTAINER, SHOP, "deny") and each.exe
        ]
    )
    saw(bool(logged) and logged[0].exe == lab.curl_path, f"in the log: {logged[0].exe if logged else 'nothing'}")


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
