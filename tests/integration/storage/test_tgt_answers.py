"""Answers are held back as long as they must be, and flow again however that ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from atoll.storage.targets.tgt import holder
from atoll.storage.targets.tgt.answers import while_answers_held
from atoll.storage.targets.tgt.barrier import BarrierBrokenError
from atoll.storage.targets.tgt.process import TargetProcess

pytestmark = pytest.mark.needs_root

DAEMON = """
import os, select, threading
ours, theirs = map(int, os.sys.argv[1:3])

def work():
    while os.read(theirs, 1):
        os.write(2, b"worked")

threading.Thread(target=work, daemon=True).start()
waiting = select.epoll()
waiting.register(ours)
while True:
    waiting.poll()
    os.write(1, os.read(ours, 1))
"""
"""As tgtd: the first thread waits for events and answers, another does what it does."""

HOLD = """
import os, sys, time
from atoll.storage.targets.tgt.answers import while_answers_held
from atoll.storage.targets.tgt.process import TargetProcess

def act():
    print("held", flush=True)
    time.sleep(3600)

pid = int(sys.argv[1])
while_answers_held(TargetProcess(pid, os.pidfd_open(pid)), act, limit_seconds=float(sys.argv[2]))
"""


class Daemon:
    """A process whose first thread answers `ask` and whose second answers `work`."""

    def __init__(self) -> None:
        self._first, self._second = os.pipe(), os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", DAEMON, str(self._first[0]), str(self._second[0])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(self._first[0], self._second[0]),
        )
        for pipe in (self._first, self._second):
            os.close(pipe[0])
        self.target = TargetProcess(self.process.pid, os.pidfd_open(self.process.pid))

    def ask(self) -> None:
        os.write(self._first[1], b"?")

    def answer(self) -> None:
        """Wait for an answer."""
        assert self.process.stdout is not None
        assert os.read(self.process.stdout.fileno(), 1) == b"?"

    def has_answered(self) -> bool:
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        try:
            return bool(os.read(self.process.stdout.fileno(), 1))
        except BlockingIOError:
            return False
        finally:
            os.set_blocking(self.process.stdout.fileno(), True)

    def work(self) -> None:
        """Have the second thread work, and wait until it did."""
        assert self.process.stderr is not None
        os.write(self._second[1], b"?")
        assert os.read(self.process.stderr.fileno(), 6) == b"worked"

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self.target.pidfd)
        for pipe in (self._first, self._second):
            os.close(pipe[1])


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    made = Daemon()
    made.ask()
    made.answer()
    made.work()
    try:
        yield made
    finally:
        made.close()


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_nothing_is_answered_and_others_work(daemon: Daemon) -> None:
    def act() -> None:
        daemon.ask()
        for _ in range(50):
            daemon.work()
        assert not daemon.has_answered()
        assert state(daemon.process.pid) == "t"

    times = while_answers_held(daemon.target, act, limit_seconds=60)
    daemon.answer()
    assert times.started_at <= times.finished_at
    assert times.pause_seconds > 0


def test_a_busy_daemon_is_held_between_two_events(daemon: Daemon) -> None:
    for _ in range(20):
        for _ in range(50):
            daemon.ask()
        held = []
        while_answers_held(daemon.target, lambda held=held: held.append(1), limit_seconds=60)
        assert held
        for _ in range(50):
            daemon.answer()


def test_an_action_that_fails_lets_go(daemon: Daemon) -> None:
    def act() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        while_answers_held(daemon.target, act, limit_seconds=60)
    daemon.ask()
    daemon.answer()


def test_when_the_time_is_over_answers_flow_and_the_snapshot_is_none(daemon: Daemon) -> None:
    def act() -> None:
        daemon.ask()
        daemon.answer()  # comes when the time is over

    with pytest.raises(BarrierBrokenError, match="time was over"):
        while_answers_held(daemon.target, act, limit_seconds=0.3)


def test_without_a_daemon_it_is_just_done() -> None:
    done = []
    assert while_answers_held(None, lambda: done.append(1), limit_seconds=1).pause_seconds == 0
    assert done


def test_a_daemon_that_ended_is_told_of(daemon: Daemon) -> None:
    daemon.process.kill()
    daemon.process.wait()
    with pytest.raises(BarrierBrokenError):
        while_answers_held(daemon.target, lambda: None, limit_seconds=60)


def test_a_daemon_that_ends_meanwhile_breaks_it(daemon: Daemon) -> None:
    with pytest.raises(BarrierBrokenError):
        while_answers_held(daemon.target, daemon.process.kill, limit_seconds=60)


def test_one_that_never_rests_is_let_go() -> None:
    with running("while True: pass") as (process, target):
        with pytest.raises(BarrierBrokenError, match="rest"):
            while_answers_held(target, lambda: None, limit_seconds=0.3)
        assert state(process.pid) in "RS"


@contextmanager
def running(code: str) -> Iterator[tuple["subprocess.Popen[bytes]", TargetProcess]]:
    process = subprocess.Popen([sys.executable, "-c", code])
    target = TargetProcess(process.pid, os.pidfd_open(process.pid))
    try:
        yield process, target
    finally:
        process.kill()
        process.wait()
        os.close(target.pidfd)


@pytest.mark.parametrize("who", ["the caller", "the holder"])
def test_whoever_is_killed_answers_flow(daemon: Daemon, who: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(daemon.process.pid), "3600"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == b"held\n"
        daemon.ask()
        daemon.work()
        assert not daemon.has_answered()
        (guard,) = children(caller.pid)
        os.kill(caller.pid if who == "the caller" else guard, signal.SIGKILL)
        daemon.answer()
        caller.kill()


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_debugger_in_the_way_is_told_of(daemon: Daemon) -> None:
    """A process has one tracer; the second is refused, and nothing is held."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(daemon.process.pid), "3600"], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(BarrierBrokenError, match="not permitted"):
            while_answers_held(daemon.target, lambda: None, limit_seconds=60)
        other.kill()
    daemon.ask()
    daemon.answer()


def test_no_holder_no_snapshot(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holder, "__file__", "/does/not/exist.py")
    done: list[int] = []
    with pytest.raises(BarrierBrokenError, match="did not start"):
        while_answers_held(daemon.target, lambda: done.append(1), limit_seconds=60)
    assert not done
