"""Killed at any line of any call, and again in the repeat, every engine finds its way back."""

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
from storage_engines import ESX1, Storage

from atoll.model.storage import LunGroup
from atoll.storage.engine import ManagedEngine

pytestmark = pytest.mark.needs_root

KILLED_AT_A_LINE = """
import os, signal, sys
from pathlib import Path
from atoll import storage
from atoll.settings import StorageSection
from atoll.wiring import open_system

section, call, last = StorageSection.model_validate_json(sys.argv[1]), sys.argv[2], int(sys.argv[3])
package = os.path.dirname(storage.__file__)
engine = open_system(section)
lines = 0

def trace(frame, event, argument):
    global lines
    if not frame.f_code.co_filename.startswith(package):
        return None
    if event == "line":
        lines += 1
        if lines == last:
            os.kill(os.getpid(), signal.SIGKILL)
    return trace

sys.settrace(trace)
eval(call)
sys.settrace(None)
print(lines)
"""


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


def unit_size(engine: ManagedEngine) -> int:
    unit = engine.capabilities.unit_bytes
    return -(-(16 << 20) // unit) * unit


def run(storage: Storage, call: str, last_line: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-c",
            KILLED_AT_A_LINE,
            storage.section.model_dump_json(),
            f"engine.{call}".replace("SIZE", str(storage.size)),
            str(last_line),
        ],
        capture_output=True,
        text=True,
        check=False,
    )


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


@pytest.mark.parametrize(
    "share", [3, pytest.param(40, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
)
@pytest.mark.parametrize("call", sorted(CALLS))
def test_killed_at_any_line(storage: Storage, call: str, share: int) -> None:
    preparation, done = CALLS[call]
    if "revert" in call and not storage.engine.capabilities.revert:
        pytest.skip("this engine cannot revert")
    prepare(storage, preparation)
    whole = run(storage, call, -1)
    assert whole.returncode == 0, whole.stderr
    lines = int(whole.stdout)
    assert lines > share
    kills = 0
    for number in range(share):
        prepare(storage, preparation)
        line = 1 + number * (lines - 1) // (share - 1)
        for last in (line, 1 + (line * 7 + 13) % lines):
            killed = run(storage, call, last)
            # Polling makes the number of lines vary: the last ones may not come this time.
            assert killed.returncode in (-signal.SIGKILL, 0), killed.stderr
            kills += killed.returncode == -signal.SIGKILL
        engine = storage.reopen()
        engine.reconcile()
        check_nothing_is_left_over(engine)
        eval(f"engine.{call}", {"engine": engine, "SIZE": storage.size})
        assert done(engine)
        check_nothing_is_left_over(engine)
    assert kills >= share
    prepare(storage, ())
