"""The agent's core as Windows would run it: its guard, its volumes and its service."""

import ctypes
import sys
import threading

import pytest

from atoll_agent.clock import Deadline
from atoll_agent.errors import HoldError
from atoll_agent.windows import volumes, vss
from atoll_agent.windows.__main__ import main
from atoll_agent.windows.guard import TimedGuard
from atoll_agent.windows.service import (
    NAME,
    HandlerFunction,
    MainFunction,
    Service,
    ServiceStatus,
    TableEntry,
)

STOPPED, STOP_PENDING, RUNNING = 1, 3, 4


def test_a_timed_guard_keeps_a_hold_for_its_lease_and_no_longer():
    ended, told = threading.Event(), []
    guard = TimedGuard(60.0)
    assert guard.begin(Deadline(30.0), 0.1, lambda ending: (told.append(ending), ended.set()))
    guard.freeze(Deadline(1.0))
    assert ended.wait(20)
    assert told[0].reason == "the lease of 0.1 s ended"
    assert not guard.thaw().held
    assert not guard.alive


def test_a_timed_guard_that_is_thawed_in_time_was_unbroken():
    guard = TimedGuard(60.0)
    assert guard.begin(Deadline(30.0), 30.0, lambda _: pytest.fail("it was thawed"))
    guard.freeze(Deadline(1.0))
    assert guard.thaw().held
    assert guard.thaw().held


def test_a_timed_guard_whose_time_is_over_holds_nothing():
    guard = TimedGuard(0.01)
    while guard.alive:
        pass
    assert not guard.begin(Deadline(1.0), 1.0, lambda _: None)
    with pytest.raises(HoldError, match="no hold began"):
        guard.freeze(Deadline(1.0))


class Manager:
    """The service control manager: starts the service, and stops it when told to."""

    def __init__(self, refuses=False):
        self.refuses = refuses
        self.states = []
        self.handler = None
        self.registered = threading.Event()

    def StartServiceCtrlDispatcherW(self, table):
        if self.refuses:
            return 0
        entries = ctypes.cast(table, ctypes.POINTER(TableEntry))
        assert entries[0].name == NAME
        assert not entries[1].main
        main = MainFunction(ctypes.cast(entries[0].main, ctypes.c_void_p).value)
        service = threading.Thread(target=main, args=(0, None))
        service.start()
        service.join()
        return 1

    def RegisterServiceCtrlHandlerExW(self, name, handler, context):
        self.handler = HandlerFunction(ctypes.cast(handler, ctypes.c_void_p).value)
        self.registered.set()
        return 77

    def SetServiceStatus(self, handle, status):
        assert handle.value == 77
        found = ctypes.cast(status, ctypes.POINTER(ServiceStatus)).contents
        self.states.append((found.current_state, found.service_specific_exit_code))
        return 1


def test_the_service_runs_until_the_manager_stops_it():
    manager = Manager()
    running = threading.Event()

    def serve(stop):
        running.set()
        assert stop.wait(20)
        return 0

    dispatching = threading.Thread(target=Service(serve, manager).dispatch)
    dispatching.start()
    assert running.wait(20)
    assert manager.handler(4, 0, None, None) == 0  # interrogate
    assert manager.handler(99, 0, None, None) == 120
    assert manager.handler(1, 0, None, None) == 0  # stop
    dispatching.join(20)
    assert not dispatching.is_alive()
    assert manager.states == [(RUNNING, 0), (RUNNING, 0), (STOP_PENDING, 0), (STOPPED, 0)]


def test_a_service_that_fails_says_so_to_the_manager():
    manager = Manager()
    Service(lambda stop: 3, manager).dispatch()
    assert manager.states[-1] == (STOPPED, 3)


def test_a_process_that_the_manager_did_not_start_says_how_to():
    with pytest.raises(OSError, match="sc start AtollAgent"):
        Service(lambda stop: 0, Manager(refuses=True)).dispatch()


class Kernel32:
    """The volumes of a guest: by their names, what kind they are and where they are mounted."""

    INVALID = ctypes.c_void_p(-1).value

    def __init__(self, volumes):
        self.volumes = volumes
        self.names = iter(())
        self.flushed = []
        self.closed = 0

    def FindFirstVolumeW(self, buffer, size):
        self.names = iter(self.volumes)
        return 5 if self.FindNextVolumeW(5, buffer, size) else self.INVALID

    def FindNextVolumeW(self, handle, buffer, size):
        name = next(self.names, None)
        if name is None:
            return 0
        buffer.value = name
        return 1

    def FindVolumeClose(self, handle):
        self.closed += 1
        return 1

    def GetDriveTypeW(self, name):
        return self.volumes[name][0]

    def GetVolumeInformationW(self, name, *rest):
        kind = self.volumes[name][1]
        rest[-2].value = kind
        return bool(kind)

    def GetVolumePathNamesForVolumeNameW(self, name, buffer, size, length):
        buffer.value = self.volumes[name][2]
        return 1

    def CreateFileW(self, path, *rest):
        self.flushed.append(path)
        return self.INVALID if "Z:" in path else 9

    def FlushFileBuffers(self, handle):
        return 1

    def CloseHandle(self, handle):
        self.closed += 1
        return 1


@pytest.fixture
def kernel32(monkeypatch):
    made = Kernel32(
        {
            "\\\\?\\Volume{1}\\": (3, "NTFS", "E:\\"),
            "\\\\?\\Volume{2}\\": (3, "NTFS", "C:\\"),
            "\\\\?\\Volume{3}\\": (3, "ReFS", "C:\\mount\\data\\"),
            "\\\\?\\Volume{4}\\": (3, "FAT32", "S:\\"),
            "\\\\?\\Volume{5}\\": (5, "CDFS", "D:\\"),
            "\\\\?\\Volume{6}\\": (3, "NTFS", ""),
            "\\\\?\\Volume{7}\\": (3, "", "F:\\"),
        }
    )
    monkeypatch.setattr(volumes, "kernel32", lambda: made)
    monkeypatch.setattr(ctypes, "get_last_error", lambda: 5, raising=False)
    return made


def test_fixed_volumes_of_which_copies_can_be_made_are_found(kernel32):
    assert volumes.fixed_volumes() == ["C:\\", "C:\\mount\\data\\", "E:\\"]
    assert kernel32.closed == 1


def test_a_volume_is_flushed_by_its_device(kernel32):
    volumes.flush_volume("C:\\")
    assert kernel32.flushed == ["\\\\.\\C:"]
    assert kernel32.closed == 1
    with pytest.raises(OSError, match="Windows error 5"):
        volumes.flush_volume("Z:\\")


def test_the_console_shows_what_would_be_held(kernel32, monkeypatch, tmp_path, capsys):
    config = tmp_path / "agent.json"
    config.write_text(
        '{"name": "sql1", "instance_uuid": "50", "certificate": "c", "key": "k", "authority": "a"}'
    )
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(vss.ShadowCopies.__init__, "__defaults__", ("/none.exe", tmp_path / "vss"))
    assert main(["check", "--config", str(config)]) == 0
    assert main(["status", "--config", str(config)]) == 0
    assert "application  vss volumes: cannot be held: /none.exe" in capsys.readouterr().out
    assert main(["status", "--config", str(tmp_path / "none.json")]) == 1
