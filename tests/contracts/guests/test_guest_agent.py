"""What every GuestAgent owes, asked of the channel to a real agent and of the fake."""

import pytest

from agent_parts import served_agent
from agents import FakeAgent
from atoll.guests.authority import Authority
from atoll.model.errors import HoldFailedError


@pytest.fixture
def real(tmp_path):
    """A real agent that finds no application and no file system to hold."""
    with served_agent(tmp_path, Authority.open(tmp_path / "agents")) as agent:
        yield agent.channel()


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


def test_a_run_that_was_thawed_is_not_held_again(guest_agent):
    guest_agent.freeze("a", 60, 30)
    thawed = guest_agent.thaw("a")
    with pytest.raises(HoldFailedError):
        guest_agent.freeze("a", 60, 30)
    assert guest_agent.status().state == "idle"
    assert guest_agent.thaw("a") == thawed
    assert not guest_agent.thaw("b").held
    with pytest.raises(HoldFailedError):
        guest_agent.freeze("b", 60, 30)


def test_looking_holds_nothing(guest_agent):
    findings = guest_agent.look()
    assert [entry.kind for entry in findings.applications] in ([], ["postgresql"])
    assert guest_agent.status().state == "idle"
