"""Readers and who deletes keep out of each other's way, and the dead keep nothing."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from atoll.model.errors import RunConflictError
from atoll.service.pins import Pins

SNAPSHOT = ("prod", "atoll-1-r1")


def test_readers_share_and_keep_the_snapshot(tmp_path: Path) -> None:
    pins = Pins(tmp_path)
    others = Pins(tmp_path).reading([SNAPSHOT, ("prod", "other")])
    with pins.reading([SNAPSHOT]), others, pins.deleting(*SNAPSHOT) as free:
        assert not free
    with pins.deleting(*SNAPSHOT) as free:
        assert free


def test_nobody_begins_to_read_what_is_being_deleted(tmp_path: Path) -> None:
    pins = Pins(tmp_path)
    refused = pytest.raises(RunConflictError, match="being deleted")
    with pins.deleting(*SNAPSHOT), refused, pins.reading([SNAPSHOT]):
        pass
    with pins.reading([SNAPSHOT]):
        pass


def test_of_several_none_stays_locked_when_one_is_refused(tmp_path: Path) -> None:
    pins = Pins(tmp_path)
    with pins.deleting("prod", "b"):
        with pytest.raises(RunConflictError), pins.reading([("prod", "a"), ("prod", "b")]):
            pass
        with pins.deleting("prod", "a") as free:
            assert free


def _read(directory: Path, ready: "multiprocessing.synchronize.Event") -> None:
    with Pins(directory).reading([SNAPSHOT]):
        ready.set()
        signal.pause()


def test_a_killed_reader_keeps_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    reader = context.Process(target=_read, args=(tmp_path, ready))
    reader.start()
    assert ready.wait(30)
    pins = Pins(tmp_path)
    with pins.deleting(*SNAPSHOT) as free:
        assert not free
    assert reader.pid is not None
    os.kill(reader.pid, signal.SIGKILL)
    reader.join()
    with pins.deleting(*SNAPSHOT) as free:
        assert free
