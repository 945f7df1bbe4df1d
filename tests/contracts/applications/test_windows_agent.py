"""The agent's Windows service, director's channel and all, on a Python without POSIX."""

import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from atoll.guests.authority import Authority
from atoll.guests.channel import AgentChannel
from atoll.guests.enrolment import enrol
from atoll.guests.registry import AgentRegistry
from vendor_benches import soon
from vendors import diskshadow
from vendors.product import create

UUID = "50123456-789a-bcde-f012-3456789abcde"
WITHOUT_POSIX = Path(__file__).parents[2] / "fakes/without_posix.py"


@pytest.fixture
def fake(tmp_path):
    return create(tmp_path / "server", ("diskshadow.exe",), "diskshadow", **diskshadow.START)


@pytest.fixture
def channel(fake, tmp_path):
    """The director's way to an agent that was enrolled with the tar and serves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    authority = Authority.open(tmp_path / "agents")
    tar = enrol(
        authority,
        "sql1",
        UUID,
        tmp_path / "sql1.tar",
        address="127.0.0.1",
        port=port,
        applications=[{"kind": "vss", "name": "all", "truncate": 1}],
    )
    with tarfile.open(tar) as archive:
        archive.extractall(tmp_path / "root", filter="data")
    agent = subprocess.Popen(
        [
            sys.executable,
            WITHOUT_POSIX,
            fake.directory / "bin/diskshadow.exe",
            tmp_path / "Atoll",
            tmp_path / "root/etc/atoll/agent.json",
        ],
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(WITHOUT_POSIX.parent)},
    )
    try:
        assert soon(lambda: listens(port))
        [entry] = AgentRegistry(authority.directory).agents()
        yield AgentChannel(entry, authority.credentials)
    finally:
        agent.stdin.close()
        assert agent.wait(60) == 0


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_director_holds_it_as_any_other_guest(channel, fake):
    assert channel.status().state == "idle"
    channel.prepare("a")
    frozen = channel.freeze("a", 30.0, 10.0)
    [application] = frozen.applications
    assert application.held, application.detail
    assert application.kind == "vss"
    assert frozen.filesystems == ()
    assert channel.thaw("a", snapshot=True).held
    assert soon(lambda: fake.state()["shadows"] == [])
    assert "end backup" in fake.state()["events"]


def test_a_lease_that_ends_breaks_the_hold(channel, fake):
    channel.prepare("a")
    assert channel.freeze("a", 1.0, 10.0).applications[0].held
    assert soon(lambda: channel.status().state == "idle")
    assert not channel.thaw("a").held
    assert soon(lambda: fake.state()["shadows"] == [])
    assert fake.state()["truncated"] == []
