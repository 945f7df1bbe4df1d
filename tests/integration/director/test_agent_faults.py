"""Agents and their watchdogs that are killed or hang, in every phase of a hold."""

import os
import signal
import threading
from collections.abc import Callable

import pytest
from private_guest import await_that
from small_site import (
    SHORT,
    SHORT_LEASE_SECONDS,
    At,
    SmallGuest,
    SmallSite,
    assert_called,
    assert_reasons,
    proofs,
    soak,
)

from atoll.director.policy import Way
from atoll.model.errors import AgentUnavailableError

pytestmark = [pytest.mark.needs_root, pytest.mark.usefixtures("impatient")]

Fault = Callable[[SmallGuest], object]

SILENT = r"The agent of app1 at \S+ does not answer \(nothing came within .* s\); see whether .*\."
GONE = r"The agent of app1 at \S+ does not answer \(.*\); see whether it runs and can be reached\."
LATE = (
    r"Guest app1 was not held within the 3 s that all guests of a run have to freeze; see what its "
    r"applications wait for, or raise budget_seconds\."
)
UNCONFIRMED = "the thaw was not confirmed: "


def hang(guest: SmallGuest) -> None:
    """Stop the agent; its watchdog runs on."""
    guest.agent.process.send_signal(signal.SIGSTOP)


def kill(guest: SmallGuest) -> None:
    guest.agent.process.kill()
    guest.agent.process.wait()


def kill_watchdog(guest: SmallGuest) -> None:
    os.kill(guest.agent.watchdog(), signal.SIGKILL)


def when(stage: str, fault: Fault, guest: SmallGuest) -> At:
    """The fault at a stage; `thaw` is when the agent is asked to let go."""
    if stage == "thaw":
        return At(snapshot=lambda: guest.wire.before_the_next_request(lambda: fault(guest)))
    return At(**{stage: lambda: fault(guest)})


def test_nothing_happens(site: SmallSite) -> None:
    result = site.back_up(accept_less=False)
    assert_called(result)
    for vm in ("db1", "app1", "web1"):
        assert_reasons(result, vm)


@pytest.mark.parametrize(
    ("stage", "fault", "reason"),
    [
        ("prepare", hang, SILENT),
        ("hold", hang, LATE),
        ("snapshot", hang, UNCONFIRMED + SILENT),
        soak("thaw", hang, UNCONFIRMED + SILENT),
        soak("prepare", kill, GONE),
        ("hold", kill, GONE),
        ("snapshot", kill, UNCONFIRMED + GONE),
        soak("thaw", kill, UNCONFIRMED + GONE),
        ("snapshot", kill_watchdog, r"the watchdog died \(SIGKILL\)"),
        soak("thaw", kill_watchdog, r"the watchdog died \(SIGKILL\)"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)[:8]),
)
def test_one_agent_fails_and_its_point_alone_says_so(
    site: SmallSite, stage: str, fault: Fault, reason: str
) -> None:
    result = site.hold_alone(when(stage, fault, site.guests["app1"]), **SHORT)
    assert_called(result, app1="crash")
    assert_reasons(result, "app1", reason)


def test_a_watchdog_that_dies_before_the_hold_costs_nothing(site: SmallSite) -> None:
    """The agent arms the guest again, with another one."""
    result = site.hold_alone(when("hold", kill_watchdog, site.guests["app1"]), accept_less=False)
    assert_called(result)
    assert_reasons(result, "app1")


def test_an_agent_that_hangs_fails_the_run_unless_less_is_accepted(site: SmallSite) -> None:
    at = when("prepare", hang, site.guests["app1"])
    with pytest.raises(AgentUnavailableError, match=SILENT):
        site.hold_alone(at, accept_less=False)


@pytest.mark.parametrize("stage", [soak("prepare"), "hold"])
def test_a_vm_whose_agent_is_gone_is_held_the_next_way(site: SmallSite, stage: str) -> None:
    at = when(stage, kill, site.guests["app1"])
    result = site.back_up(at, accept_less=False)
    assert_called(result)
    assert proofs(result)["app1"].way == Way.VMWARE
    assert len(proofs(result)["app1"].fell_back) == 1
    assert any(note.startswith("app1: is held the vmware way: The agent") for note in at.notes)


def test_agent_and_watchdog_killed_at_once_the_next_agent_thaws(site: SmallSite) -> None:
    """Nobody is left to keep the lease: systemd starts the agent again, which thaws first of all."""
    guest = site.guests["app1"]

    def kill_both() -> None:
        # Stopped first, or one of them would see the other die.
        watchdog = guest.agent.watchdog()
        os.kill(watchdog, signal.SIGSTOP)
        kill(guest)
        os.kill(watchdog, signal.SIGKILL)

    result = site.hold_alone(At(snapshot=kill_both, release=guest.agent.start))
    assert_called(result, app1="crash")
    assert "was found frozen and was thawed" in guest.agent.log
    assert_reasons(result, "app1", UNCONFIRMED + GONE)


@pytest.mark.soak
def test_a_watchdog_that_hangs_does_not_outlast_the_lease_for_long(site: SmallSite) -> None:
    """The director is gone, too: the agent ends the hung watchdog and thaws in its place."""
    guest = site.guests["app1"]
    guest.agent.channel.freeze("hung", 1.0, 4.0)
    os.kill(guest.agent.watchdog(), signal.SIGSTOP)
    await_that(lambda: guest.agent.channel.status().state == "idle", "the agent steps in")
    assert guest.serves(SHORT_LEASE_SECONDS)
    thawed = guest.agent.channel.thaw("hung")
    assert (thawed.held, thawed.reason) == (False, "the watchdog hung, and the agent ended it")


def test_a_watchdog_that_wakes_up_after_the_lease_does_not_call_it_held(site: SmallSite) -> None:
    """It finds the end of the lease and the thaw at the same moment."""
    guest = site.guests["app1"]
    guest.agent.channel.freeze("slow", 1.0, 20.0)
    watchdog = guest.agent.watchdog()
    os.kill(watchdog, signal.SIGSTOP)
    assert not guest.serves(2.0), "the lease is over, and nobody let go"
    wake = threading.Timer(1.0, os.kill, (watchdog, signal.SIGCONT))
    wake.start()
    thawed = guest.agent.channel.thaw("slow")
    wake.join()
    assert (thawed.held, thawed.reason) == (False, "the lease of 1 s ended")
