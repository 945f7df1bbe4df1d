"""The watchdog's own time limits, with a process in a session's place and no file system."""

import os
import subprocess
import threading

import pytest

from atoll_agent import watchdog
from atoll_agent.clock import Deadline
from atoll_agent.errors import HoldError
from atoll_agent.guard import Guard


@pytest.fixture
def session():
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def test_a_watchdog_whose_hold_never_begins_ends_the_sessions_and_itself(session):
    guard = Guard([], [session.pid], 0.2)
    assert session.wait(60) == -9
    assert guard._process.wait(60) == 0
    assert not guard.begin(Deadline(60), 60, lambda ending: None)
    ending = guard.thaw()
    assert (ending.held, ending.reason) == (False, "no hold began within 0.2 s")


def test_a_hold_that_begins_and_never_freezes_ends_with_the_budget(session):
    guard = Guard([], [session.pid], 60)
    assert guard.begin(Deadline(0.2), 60, lambda ending: None)
    assert session.wait(60) == -9
    with pytest.raises(HoldError, match=r"the budget of 0\.\d+ s to freeze ran out"):
        guard.freeze(Deadline(60))


def test_the_lease_counts_from_the_freeze_and_is_told_of(session):
    endings = []
    guard = Guard([], [session.pid], 60)
    assert guard.begin(Deadline(60), 0.2, endings.append)
    guard.freeze(Deadline(60))
    assert session.wait(60) == -9
    assert guard.thaw().reason == "the lease of 0.2 s ended"


def test_an_armed_watchdog_is_ended_without_touching_the_sessions(session):
    guard = Guard([], [session.pid], 60)
    guard.thaw()
    assert guard._process.wait(60) == 0
    assert not guard.alive
    assert session.poll() is None


def test_nothing_freezes_before_the_hold_began():
    guard = Guard([], [], 60)
    with pytest.raises(HoldError, match="too long"):
        guard.freeze(Deadline(0.2))


def test_databases_are_let_go_before_a_freeze_that_hangs_comes_to_its_end(session):
    """One slow disk must not keep the locks of databases on the others."""
    may_end = threading.Event()

    class Hanging:
        def freeze(self):
            may_end.wait(60)
            return ""

        def thaw(self):
            return []

    wake_read, wake_write = os.pipe()
    pidfd = os.pidfd_open(session.pid)
    orders = watchdog.Orders((), (), (pidfd,), 60.0)
    watch = watchdog._Watch(orders, Hanging(), wake_read, wake_write, b"begin 0.2 60\nfreeze\n")
    runner = threading.Thread(target=watch.run)
    runner.start()
    try:
        assert session.wait(30) == -9
        assert runner.is_alive()
    finally:
        may_end.set()
        runner.join()
        for descriptor in (pidfd, wake_read, wake_write):
            os.close(descriptor)
