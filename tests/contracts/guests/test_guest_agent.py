"""What every GuestAgent owes, asked of the channel to a real agent and of the fake."""

import sys
import threading
from pathlib import Path

import pytest

from atoll.guests.authority import Authority
from atoll.guests.channel import AgentChannel
from atoll.guests.registry import EnrolledAgent
from atoll.model.errors import HoldFailedError
from atoll_agent.config import Config
from atoll_agent.keeper import Keeper
from atoll_agent.server import AgentServer

sys.path.insert(0, str(Path(__file__).parents[2] / "fakes"))
from agents import FakeAgent

UUID = "50123456-789a-bcde-f012-3456789abcde"


@pytest.fixture
def real(tmp_path):
    """A real agent that finds no application and no file system to hold."""
    authority = Authority.open(tmp_path / "agents")
    issued = authority.issue_agent("db1", UUID)
    certificate, key = tmp_path / "agent.crt", tmp_path / "agent.key"
    certificate.write_bytes(issued.certificate)
    key.write_bytes(issued.key)
    trust = authority.credentials
    config = Config(
        "db1", UUID, "127.0.0.1", 0, certificate, key, trust.authority, (), False, (), ()
    )
    keeper = Keeper(list, list)
    server = AgentServer(config, keeper)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    port = server.server_address[1]
    yield AgentChannel(EnrolledAgent(UUID, "db1", "127.0.0.1", port, issued.fingerprint), trust)
    keeper.stop()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(params=["real", "fake"])
def guest_agent(request):
    return FakeAgent() if request.param == "fake" else request.getfixturevalue("real")


def test_a_hold_is_unbroken_from_freeze_to_thaw(guest_agent):
    guest_agent.prepare("a")
    frozen = guest_agent.freeze("a", 60, 30)
    assert guest_agent.status().run == "a"
    thawed = guest_agent.thaw("a")
    assert (thawed.run, thawed.held, thawed.reason) == ("a", True, "")
    assert thawed.frozen_at == frozen.frozen_at <= thawed.thawed_at
    assert guest_agent.status().state == "idle"


def test_freeze_and_thaw_may_be_repeated(guest_agent):
    frozen = guest_agent.freeze("a", 60, 30)
    assert guest_agent.freeze("a", 60, 30).frozen_at == frozen.frozen_at
    assert guest_agent.thaw("a") == guest_agent.thaw("a")


def test_another_run_is_refused_and_its_thaw_touches_nothing(guest_agent):
    guest_agent.freeze("a", 60, 30)
    for call in (lambda: guest_agent.freeze("b", 60, 30), lambda: guest_agent.prepare("b")):
        with pytest.raises(HoldFailedError):
            call()
    assert not guest_agent.thaw("b").held
    assert guest_agent.status().run == "a"
    assert guest_agent.thaw("a").held


def test_a_thaw_without_a_hold_says_so(guest_agent):
    thawed = guest_agent.thaw("never")
    assert (thawed.held, thawed.frozen_at) == (False, None)
    assert thawed.reason


def test_a_run_can_be_held_again(guest_agent):
    guest_agent.freeze("a", 60, 30)
    assert guest_agent.thaw("a").held
    guest_agent.freeze("a", 60, 30)
    assert guest_agent.thaw("a").held
