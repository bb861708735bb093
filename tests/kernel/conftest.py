"""Each test file has one gate of its own; each test starts over empty maps in a new generation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.cable import Cable
from tests.kernel.host import Host
from tests.kernel.lab import DEVICE, FAR_DEVICE, Lab, Watch
from tests.support.netns import Agent, Wire


@pytest.fixture(scope="module")
def loaded_lab() -> Iterator[Lab]:
    lab = Lab()
    try:
        lab.load()
        yield lab
    finally:
        lab.close()


@pytest.fixture(scope="module")
def _watch(loaded_lab: Lab) -> Iterator[Watch]:
    watch = Watch(loaded_lab)
    yield watch
    watch.close()


@pytest.fixture
def watch(_watch: Watch) -> Iterator[Watch]:
    _watch.reset()
    yield _watch
    _watch.lab.dismiss()


@pytest.fixture
def client(watch: Watch) -> Agent:
    """A process behind the gate, in its control group."""
    return watch.lab.agent()


@pytest.fixture
def server(watch: Watch) -> Agent:
    """A process at the other end of the wire."""
    return watch.lab.agent(outside=True)


@pytest.fixture
def wire(watch: Watch) -> Iterator[Wire]:
    """What has passed the gate: the far end of the cable."""
    far = Wire(watch.lab.outside, FAR_DEVICE)
    yield far
    far.close()


@pytest.fixture
def near(watch: Watch) -> Iterator[Wire]:
    """The guarded end of the cable."""
    opened = Wire(watch.lab.inside, DEVICE)
    yield opened
    opened.close()


# ---- with an engine: under the file's POLICY, unless it says by a fixture `running` of its own what its hosts are


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[Host]:
    host = Host(request.module.POLICY)
    try:
        host.start()
        yield host
    finally:
        host.close()


@pytest.fixture
def host(running: Host) -> Iterator[Host]:
    yield running
    running.dismiss()


@pytest.fixture
def gateway(host: Host) -> Host:
    """The host, where it forwards for somebody."""
    return host


@pytest.fixture
def cable(running: Host) -> Iterator[Cable]:
    """The guarded wire, from both ends."""
    opened = Cable(running)
    yield opened
    opened.close()


@pytest.fixture
def far(running: Host) -> Iterator[Wire]:
    """The far end of the guarded wire."""
    opened = Wire(running.outside, FAR_DEVICE)
    yield opened
    opened.close()


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A lab without a gate yet."""
    fresh = Lab()
    yield fresh
    fresh.close()
