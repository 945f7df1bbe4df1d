"""The agent's state machine, with applications that lie in memory and no file system at all."""

import threading

import pytest

from atoll_agent.application import HeldApplication
from atoll_agent.errors import ApplicationError, ConflictError, HoldError
from atoll_agent.keeper import Keeper, State
from atoll_agent.mounts import Mount
from atoll_agent.protocol import FreezeRequest


class FakeApplication:
    """Holds when it is told to, and tells whether it was let go."""

    kind, name = "fake", "one"

    def __init__(self):
        self.open_error = self.prepare_error = self.lost = ""
        self.opened = False
        self.ready = True
        self.openings = 0
        self.closed = threading.Event()
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
        self.openings += 1
        self.closed.clear()
        return []

    def flush_again(self, deadline):
        self.prepare(deadline)

    def still_ready(self, deadline):
        return self.ready

    def hold(self, deadline):
        self.holding.set()
        assert self.may_hold.wait(60)
        return HeldApplication(self.kind, self.name, True, "7", None, 0.0, "")

    def still_held(self, deadline):
        return self.lost

    def close(self):
        self.opened = False
        self.closed.set()


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


def watchdog_of(keeper):
    return keeper._armed.guard._process


def test_a_hold_from_freeze_to_thaw(keeper, application):
    held = keeper.freeze(request())
    assert held.began_at <= held.frozen_at
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


def test_a_freeze_that_comes_after_the_thaw_of_its_hold_holds_nothing(keeper, application):
    """The director asks again when a connection breaks, and the first request may come last."""
    keeper.freeze(request())
    released = keeper.thaw("a")
    with pytest.raises(HoldError, match="thawed before"):
        keeper.freeze(request())
    assert (keeper.state(), application.opened) == (State("idle", ""), False)
    assert keeper.thaw("a") is released


def test_a_run_whose_hold_broke_may_be_held_again_until_it_is_thawed(keeper):
    first = keeper.freeze(request(lease=1.0))
    with keeper._changed:
        assert keeper._changed.wait_for(lambda: keeper._state.state == "idle", 60)
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


def test_what_does_not_flush_is_left_to_the_hold(keeper, application):
    application.prepare_error = "disk full"
    keeper.prepare("a")
    assert keeper.freeze(request()).applications[0].held
    assert application.openings == 1
    assert keeper.thaw("a").held


def test_a_freeze_that_comes_after_its_thaw_holds_nothing(keeper, application):
    keeper.prepare("a")
    assert not keeper.thaw("a").held
    with pytest.raises(HoldError, match="thawed before"):
        keeper.freeze(request())
    assert keeper.state() == State("idle", "")
    assert not application.opened
    keeper.freeze(request("b"))
    assert keeper.thaw("b").held


def test_a_failure_while_looking_around_leaves_nothing_held(application):
    def broken():
        raise RuntimeError("no /proc")

    keeper = Keeper(broken, list)
    with pytest.raises(RuntimeError):
        keeper.freeze(request())
    assert keeper.state() == State("idle", "")
    assert not keeper.thaw("a").held


def test_a_prepared_run_is_held_with_what_was_armed(keeper, application):
    keeper.prepare("a")
    assert (keeper.state(), application.opened) == (State("idle", ""), True)
    watchdog = watchdog_of(keeper)
    keeper.freeze(request())
    assert keeper._hold._armed.guard._process is watchdog
    assert keeper.thaw("a").held
    assert (application.openings, application.opened) == (1, False)
    assert watchdog.wait(60) == 0


def test_what_is_armed_is_let_go_after_its_time(application):
    keeper = Keeper(lambda: [application], list, armed_seconds=0.2)
    keeper.prepare("a")
    watchdog = watchdog_of(keeper)
    assert application.closed.wait(60)
    assert watchdog.wait(60) == 0
    assert keeper.freeze(request()).applications[0].held
    assert application.openings == 2
    assert keeper.thaw("a").held


@pytest.mark.parametrize(
    "end",
    [
        lambda keeper: keeper.prepare("b"),
        lambda keeper: keeper.prepare("a"),
        lambda keeper: keeper.freeze(request("b")),
        lambda keeper: keeper.thaw("a"),
        lambda keeper: keeper.stop(),
    ],
    ids=["prepare of another", "prepare again", "freeze of another", "thaw", "stop"],
)
def test_what_is_armed_ends_with(keeper, application, end):
    keeper.prepare("a")
    watchdog = watchdog_of(keeper)
    application.closed.clear()
    end(keeper)
    assert watchdog.wait(60) == 0
    assert application.openings == 2 or not application.opened


def test_another_runs_thaw_leaves_what_is_armed(keeper):
    keeper.prepare("a")
    watchdog = watchdog_of(keeper)
    assert not keeper.thaw("b").held
    assert watchdog_of(keeper) is watchdog


@pytest.mark.parametrize("how", ["session", "watchdog", "application", "mount"])
def test_what_is_armed_and_no_longer_good_is_armed_again(application, how):
    found, mounts = [application], []
    keeper = Keeper(lambda: list(found), lambda: list(mounts))
    keeper.prepare("a")
    armed = keeper._armed
    if how == "session":
        application.ready = False
    elif how == "watchdog":
        armed.guard._process.kill()
        armed.guard._wait(lambda: False, 60)
    elif how == "application":
        other = FakeApplication()
        other.name = "two"
        found.append(other)
    else:
        mounts.append(Mount("/proc/self", "none", "ext4", "0:0", False))
    if how == "mount":
        # Not one that could be frozen; that it was tried shows that it was seen.
        with pytest.raises(HoldError, match="/proc/self could not be frozen"):
            keeper.freeze(request())
    else:
        assert len(keeper.freeze(request()).applications) == len(found)
        assert keeper.thaw("a").held
    assert application.openings == 2
    assert armed.guard._process.poll() is not None
    keeper.stop()


def test_a_guest_that_lacks_an_application_is_not_kept_armed(keeper, application):
    application.open_error = "too many connections"
    keeper.prepare("a")
    assert keeper._armed is None
    application.open_error = ""
    assert keeper.freeze(request()).applications[0].held


def test_an_arming_that_comes_too_late_is_undone(application):
    """A prepare that is still at it when the freeze comes leaves the hold alone."""
    late, in_time = FakeApplication(), application
    found = [in_time, late]
    keeper = Keeper(lambda: [found.pop()], list)
    preparing, may_end = threading.Event(), threading.Event()

    def prepare(deadline):
        preparing.set()
        assert may_end.wait(60)

    late.prepare = prepare
    preparer = threading.Thread(target=lambda: keeper.prepare("a"))
    preparer.start()
    assert preparing.wait(60)
    keeper.freeze(request())
    may_end.set()
    preparer.join()
    assert (late.openings, late.opened, keeper._armed) == (1, False, None)
    assert in_time.opened
    assert keeper.thaw("a").held


def test_an_error_after_arming_leaves_nothing_armed(keeper, application):
    def fail(deadline):
        raise RuntimeError("no such thing")

    application.flush_again = fail
    with pytest.raises(RuntimeError):
        keeper.prepare("a")
    assert (application.openings, application.opened, keeper._armed) == (1, False, None)


def test_an_application_with_a_record_hears_of_the_snapshot_before_it_is_asked(application):
    heard = []
    application.note_snapshot = lambda taken: heard.append((taken, application.opened))
    keeper = Keeper(lambda: [application], list)
    keeper.freeze(request("a"))
    assert keeper.thaw("a", snapshot=True).held
    keeper.freeze(request("b"))
    assert keeper.thaw("b").held
    assert heard == [(True, True)]
