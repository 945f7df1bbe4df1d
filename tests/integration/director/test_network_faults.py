"""The network between director and guest that breaks, or goes silent, around a hold."""

import threading
from collections.abc import Callable

import pytest
from small_site import SHORT, At, SmallGuest, SmallSite, assert_called, assert_reasons, proofs, soak

from agent_wire import AgentWire, Wire

pytestmark = [pytest.mark.needs_root, pytest.mark.usefixtures("impatient")]

GONE = r"The agent of app1 at \S+ does not answer \(.*\); see whether it runs and can be reached\."
SILENT = r"The agent of app1 at \S+ does not answer \(nothing came within 3 s\); see whether .*\."
LATE = r"Guest app1 was not held within the 3 s that all guests of a run have to freeze; see .*\."
UNCONFIRMED = "the thaw was not confirmed: "


def becomes(state: Wire) -> Callable[[AgentWire], None]:
    """The wire does from now on what is said."""

    def act(wire: AgentWire) -> None:
        wire.state = state

    act.__name__ = state.name.lower()
    return act


def cut(wire: AgentWire) -> None:
    wire.cut()


def cut_at_the_answer(wire: AgentWire) -> None:
    """The agent hears what it is asked next and does it; its answer and all after it is lost."""
    wire.before_the_next_answer(wire.cut)


def reset(wire: AgentWire) -> None:
    wire.reset()


def reset_at_the_answer(wire: AgentWire) -> None:
    wire.before_the_next_answer(wire.reset)


@pytest.mark.parametrize(
    ("stage", "fault", "reason"),
    [
        soak(
            "prepare", becomes(Wire.IS_SILENT), r".* does not answer \(nothing came within 3 s\).*"
        ),
        soak("hold", cut, GONE),
        ("hold", cut_at_the_answer, GONE),
        soak("hold", becomes(Wire.SWALLOWS_ANSWERS), LATE),
        ("hold", becomes(Wire.IS_SILENT), LATE),
        soak("snapshot", cut, UNCONFIRMED + GONE),
        ("snapshot", cut_at_the_answer, UNCONFIRMED + GONE),
        soak("snapshot", becomes(Wire.SWALLOWS_ANSWERS), UNCONFIRMED + SILENT),
        ("snapshot", becomes(Wire.IS_SILENT), UNCONFIRMED + SILENT),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)[:8]),
)
def test_what_was_not_confirmed_is_not_claimed(
    site: SmallSite, stage: str, fault: Callable[[AgentWire], None], reason: str
) -> None:
    wire = site.guests["app1"].wire
    result = site.hold_alone(At(**{stage: lambda: fault(wire)}), **SHORT)
    assert_called(result, app1="crash")
    assert_reasons(result, "app1", reason)


@pytest.mark.parametrize("stage", ["hold", "snapshot"])
@pytest.mark.parametrize("fault", [soak(reset), reset_at_the_answer])
def test_a_connection_that_breaks_once_costs_nothing(
    site: SmallSite, stage: str, fault: Callable[[AgentWire], None]
) -> None:
    """It is asked again over another one, and answers the same."""
    wire = site.guests["app1"].wire
    result = site.hold_alone(At(**{stage: lambda: fault(wire)}), accept_less=False)
    assert_called(result)
    assert_reasons(result, "app1")


def test_a_freeze_that_comes_after_its_thaw_freezes_nothing(site: SmallSite) -> None:
    """It was under way, in a queue somewhere, while the run gave the guest up."""
    guest = site.guests["app1"]
    given_up, arrived = threading.Event(), threading.Event()

    def wait() -> None:
        given_up.wait(30)
        arrived.set()

    at = At(hold=lambda: guest.wire.before_the_next_request(wait), release=given_up.set)
    result = site.hold_alone(at, **SHORT)
    assert arrived.wait(10)
    assert_called(result, app1="crash")
    assert_reasons(result, "app1", LATE)
    assert guest.agent.channel.status().state == "idle"
    assert state_never_left_idle(guest)
    assert proofs(result)["app1"].hold is None


def state_never_left_idle(guest: SmallGuest) -> bool:
    """Asked a few times: the late freeze would hold it for its whole lease."""
    return all(guest.agent.channel.status().state == "idle" for _ in range(20))
