"""Killed at any line of any call, and again in the repeat, every engine finds its way back."""

import os
import signal
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

import pytest
from storage_engines import ESX1, Storage

from atoll import storage as package
from atoll.model.storage import LunGroup
from atoll.storage.engine import ManagedEngine

pytestmark = pytest.mark.needs_root

PACKAGE = os.path.dirname(package.__file__)


def group(engine: ManagedEngine, name: str) -> LunGroup | None:
    return next((one for one in engine.groups() if one.name == name), None)


def luns(engine: ManagedEngine, name: str) -> list[str]:
    found = group(engine, name)
    return [lun.name for lun in found.luns] if found else []


def presented(engine: ManagedEngine, name: str) -> list[str]:
    return [one.lun for one in engine.presentations() if one.group == name]


Done = Callable[[ManagedEngine], bool]
MADE = ("create_group('x')", "create_lun('x', 'a', SIZE)")
TWO = (*MADE, "create_group('y')")
SNAPPED = (*MADE, "snapshot_group('x', 's')")
CLONED = (*SNAPPED, "clone('x', 's', 'c')")
PRESENTED = (*MADE, f"present('x', 'a', ['{ESX1}'])")

CALLS: dict[str, tuple[Sequence[str], Done]] = {
    "create_group('x')": ((), lambda e: group(e, "x") is not None),
    "create_lun('x', 'a', SIZE)": (MADE[:1], lambda e: luns(e, "x") == ["a"]),
    "grow_lun('x', 'a', 2 * SIZE)": (
        PRESENTED,
        lambda e: group(e, "x").luns[0].size_bytes == 2 * unit_size(e),
    ),
    "rename_lun('x', 'a', 'b')": (PRESENTED, lambda e: luns(e, "x") == ["b"]),
    "move_lun('x', 'a', 'y')": (TWO, lambda e: (luns(e, "x"), luns(e, "y")) == ([], ["a"])),
    f"present('x', 'a', ['{ESX1}'])": (MADE, lambda e: presented(e, "x") == ["a"]),
    "snapshot_group('x', 's')": (PRESENTED, lambda e: [s.name for s in e.snapshots("x")] == ["s"]),
    "revert_group('x', 's')": (SNAPPED, lambda e: luns(e, "x") == ["a"]),
    "clone('x', 's', 'c')": (SNAPPED, lambda e: luns(e, "c") == ["a"]),
    "withdraw('x', 'a')": (PRESENTED, lambda e: presented(e, "x") == []),
    "delete_clone('c')": (
        (*CLONED, f"present('c', 'a', ['{ESX1}'])"),
        lambda e: group(e, "c") is None,
    ),
    "delete_snapshot('x', 's')": (SNAPPED, lambda e: e.snapshots("x") == []),
    "delete_lun('x', 'a', force=True)": (SNAPPED, lambda e: luns(e, "x") == []),
    "delete_group('x', force=True)": (
        (*PRESENTED, "snapshot_group('x', 's')"),
        lambda e: group(e, "x") is None,
    ),
}


SLOW_SIDECAR_CALLS = ("create_lun('x', 'a', SIZE)", "snapshot_group('x', 's')")
"""Those the quick run makes on engines whose sidecar takes a second to start."""


def unit_size(engine: ManagedEngine) -> int:
    unit = engine.capabilities.unit_bytes
    return -(-(16 << 20) // unit) * unit


def run(storage: Storage, call: str, last_line: int) -> tuple[int, int]:
    """Make a call in a process that is killed at a line of it: its wait status, the lines it took."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:  # it has nothing of the parent's but memory: engines are opened anew
        try:
            os.close(receiving)
            lines = _call(storage.reopen(), call, storage.size, last_line)
            os.write(sending, str(lines).encode())
            os._exit(0)
        except BaseException:  # noqa: BLE001 - whatever it is, the parent is to show it
            traceback.print_exc()
            os._exit(1)
    os.close(sending)
    with open(receiving) as told:
        lines = int(told.read() or 0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), lines


def _call(engine: ManagedEngine, call: str, size: int, last_line: int) -> int:
    lines = 0

    def trace(frame: FrameType, event: str, _: object) -> Callable | None:
        nonlocal lines
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            lines += 1
            if lines == last_line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    try:
        eval(f"engine.{call}", {"engine": engine, "SIZE": size})
    finally:
        sys.settrace(None)
    return lines


def prepare(storage: Storage, calls: Sequence[str]) -> None:
    engine = storage.reopen()
    engine.delete_clone("c")
    for name in ("x", "y"):
        engine.delete_group(name, force=True)
    for call in calls:
        eval(f"engine.{call}", {"engine": engine, "SIZE": storage.size})


def check_nothing_is_left_over(engine: ManagedEngine) -> None:
    backend, records = engine._backend, engine._records
    assert records.owed() == []
    assert records.intents() == []
    live = {lun.volume for one in engine.groups() for lun in one.luns}
    assert live <= set(backend.volumes()) <= records.held_volumes()
    groups = {one.id: one.name for one in records.groups()}
    assert set(backend.groups()) <= set(groups)
    recorded = {each.id for one in groups for each in records.snapshots(one) if each.members}
    assert set(backend.snapshots()) == recorded
    serving = {name for name in groups.values() if presented(engine, name)}
    assert {groups[each] for each in backend.served()} <= serving
    assert engine.reconcile() == []


def killing_lines(lines: int, share: int, which: str) -> Iterator[tuple[int, int]]:
    """So many pairs of lines: of the first try and of its repeat.

    A single pair is another for each engine and call, so that together they are all over the code
    that engines share.
    """
    if share == 1:
        line = 2 + zlib.crc32(which.encode()) % (lines * 9 // 10)
        yield line, 1 + (line * 7 + 13) % lines
        return
    for number in range(share):
        line = 1 + number * (lines - 1) // (share - 1)
        yield line, 1 + (line * 7 + 13) % lines


@pytest.mark.parametrize(
    "share", [1, pytest.param(40, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
)
@pytest.mark.parametrize("call", sorted(CALLS))
def test_killed_at_any_line(storage: Storage, call: str, share: int) -> None:
    preparation, done = CALLS[call]
    if "revert" in call and not storage.engine.capabilities.revert:
        pytest.skip("this engine cannot revert")
    if share < 10 and storage.section.driver == "cinder" and call not in SLOW_SIDECAR_CALLS:
        pytest.skip("each kill starts a sidecar anew; the soak has all calls")
    prepare(storage, preparation)
    status, lines = run(storage, call, -1)
    assert status == 0
    assert lines > share
    kills = 0
    for pair in killing_lines(lines, share, storage.section.driver + call):
        prepare(storage, preparation)
        for last in pair:
            status, _ = run(storage, call, last)
            # Polling makes the number of lines vary: the last ones may not come this time.
            assert status in (-signal.SIGKILL, 0)
            kills += status == -signal.SIGKILL
        engine = storage.reopen()
        engine.reconcile()
        check_nothing_is_left_over(engine)
        eval(f"engine.{call}", {"engine": engine, "SIZE": storage.size})
        assert done(engine)
        check_nothing_is_left_over(engine)
    assert kills >= share
    prepare(storage, ())
