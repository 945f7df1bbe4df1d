"""The simulated site the vSphere suites run against."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyVim.connect import Disconnect, SmartConnect

from atoll.vsphere import watch
from atoll.vsphere.client import VCenter
from vsphere_farms import build_vcsim
from vsphere_site import PASSWORD, USER, SimulatedSite, simulated_site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SimulatedSite]:
    with simulated_site(tmp_path) as running:
        yield running


@pytest.fixture
def vcenter(site: SimulatedSite) -> Iterator[VCenter]:
    with VCenter.connect(site.settings()) as connected:
        yield connected


@pytest.fixture(scope="session")
def vcsim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program vcsim, built once."""
    binary = tmp_path_factory.mktemp("vcsim") / "vcsim"
    missing = build_vcsim(binary)
    if missing:
        pytest.skip(missing)
    return binary


@pytest.fixture(autouse=True)
def _proof_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine too, a question to a watch is answered by the watch."""
    monkeypatch.setattr(watch, "_PROOF_SECONDS", 120.0)


@pytest.fixture
def stock(site: SimulatedSite):
    """The ServiceInstance as pyVmomi's own SmartConnect gives it, over verified TLS."""
    endpoint = site.simulator.endpoint
    context = ssl.create_default_context(cafile=endpoint.ca_file)
    instance = SmartConnect(
        host=endpoint.host, port=endpoint.port, user=USER, pwd=PASSWORD, sslContext=context
    )
    yield instance
    Disconnect(instance)
