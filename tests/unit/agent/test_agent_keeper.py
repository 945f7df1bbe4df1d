"""The agent's state machine, with applications that lie in memory and no file system at all."""

import threading

import pytest

from atoll_agent.application import HeldApplication
from atoll_agent.errors import ApplicationError, ConflictError, HoldError
from atoll_agent.keeper import Keeper, State
from atoll_agent.protocol import FreezeRequest


class FakeApplication:
    """Holds when it is told to, and tells whether it was let go."""

    kind, name = "fake", "one"

    def __init__(self):
        self.open_error = self.prepare_error = self.lost = ""
        self.opened = False
        self.may_hold = threading.Event()
        self.may_hold.set()
        self.holding = threading.Event()

    def prepare(self, deadline):
        if self.prepare_error:
            raise ApplicationError(self.prepare_error)

    def open(self, deadline):
        if self.open_error:
            raise ApplicationError(self.open_error)
        self.opened = True
        return []

    def hold(self, deadline):
        self.holding.set()
        assert self.may_hold.wait(60)
        return HeldApplication(self.kind, self.name, True, "7", None, 0.0, "")

    def still_held(self, deadline):
        return self.lost

    def close(self):
        self.opened = False


@pytest.fixture
def application():
    return FakeApplication()


@pytest.fixture
def keeper(application):
    keeper = Keeper(lambda: [application], list)
    yield keeper
    application.may_hold.set()
    keeper.stop()


def request(run="a", lease=60.0):
    return FreezeRequest(run, lease, 30.0)


def test_a_hold_from_freeze_to_thaw(keeper, application):
    held = keeper.freeze(request())
    assert (keeper.state(), application.opened) == (State("held", "a"), True)
    released = keeper.thaw("a")
    assert (released.held, released.reason, released.frozen_at) == (True, "", held.frozen_at)
    assert (keeper.state(), application.opened) == (State("idle", ""), False)
    assert keeper.thaw("a") is released


def test_the_same_run_gets_the_same_answer_and_others_none(keeper):
    held = keeper.freeze(request())
    assert keeper.freeze(request(lease=1.0)) is held
    with pytest.raises(ConflictError, match="run a is held"):
        keeper.freeze(request("b"))
    with pytest.raises(ConflictError):
        keeper.prepare("b")
    assert not keeper.thaw("b").held
    assert keeper.state() == State("held", "a")


def test_a_run_may_be_held_again_after_it_ended(keeper):
    first = keeper.freeze(request())
    keeper.thaw("a")
    second = keeper.freeze(request())
    assert second.frozen_at > first.frozen_at
    assert keeper.thaw("a").frozen_at == second.frozen_at


def test_a_lease_lets_go_of_applications_too(keeper, application):
    keeper.freeze(request(lease=1.0))
    with keeper._changed:
        assert keeper._changed.wait_for(lambda: keeper._state.state == "idle", 60)
    assert not application.opened
    released = keeper.thaw("a")
    assert (released.held, released.reason) == (False, "the lease of 1 s ended")


def test_a_thaw_cancels_a_freeze_that_is_under_way(keeper, application):
    application.may_hold.clear()
    failure = []

    def freeze():
        try:
            keeper.freeze(request())
        except HoldError as error:
            failure.append(str(error))

    freezer = threading.Thread(target=freeze)
    freezer.start()
    assert application.holding.wait(60)
    answers = []
    thawer = threading.Thread(target=lambda: answers.append(keeper.thaw("a")))
    thawer.start()
    with keeper._changed:
        assert keeper._state == State("freezing", "a")
    with pytest.raises(ConflictError, match="freezing"):
        keeper.freeze(request("b"))
    while not keeper._cancelled:
        thawer.join(0.01)
    application.may_hold.set()
    freezer.join()
    thawer.join()
    assert failure == ["It was thawed before it was held."]
    assert not answers[0].held
    assert not application.opened


def test_an_application_that_cannot_be_opened_is_said_and_the_rest_held(keeper, application):
    application.open_error = "no such socket"
    [state] = keeper.freeze(request()).applications
    assert (state.held, state.detail) == (False, "no such socket")
    assert keeper.thaw("a").held


def test_a_lost_lock_breaks_the_hold(keeper, application):
    keeper.freeze(request())
    application.lost = "fake one lost its locks"
    released = keeper.thaw("a")
    assert (released.held, released.reason) == (False, "fake one lost its locks")


def test_a_failed_flush_is_an_error_of_prepare(keeper, application):
    keeper.prepare("a")
    application.prepare_error = "disk full"
    with pytest.raises(HoldError, match="fake one: disk full"):
        keeper.prepare("a")


def test_a_failure_while_looking_around_leaves_nothing_held(application):
    def broken():
        raise RuntimeError("no /proc")

    keeper = Keeper(broken, list)
    with pytest.raises(RuntimeError):
        keeper.freeze(request())
    assert keeper.state() == State("idle", "")
    assert not keeper.thaw("a").held
