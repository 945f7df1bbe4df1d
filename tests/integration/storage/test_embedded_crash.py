"""Killed at any line of any call, the engine finds its way back at the next start."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.storage.drivers.embedded import EmbeddedEngine
from atoll.storage.drivers.embedded.process import find_process
from atoll.storage.drivers.embedded.records import Records
from atoll.storage.drivers.embedded.tgt_socket import TgtSocket

pytestmark = pytest.mark.needs_root

HOST = "iqn.1998-01.com.vmware:esx1"
MIB = 1 << 20
SIZE = 16 * MIB

KILLED_AT_A_LINE = """
import os, signal, sys
from pathlib import Path
from atoll.storage.drivers import embedded

root, call, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
package = os.path.dirname(embedded.__file__)
engine = embedded.EmbeddedEngine("test", root, reserve_bytes=1)
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

PREPARED = ("create_group('g')", f"create_lun('g', 'a', {SIZE})")
SNAPPED = (*PREPARED, "snapshot_group('g', 's')")
CLONED = (*SNAPPED, "clone('g', 's', 'c')")
PRESENTED = (*PREPARED, f"present('g', 'a', ['{HOST}'])")

CALLS: dict[str, tuple[tuple[str, ...], Callable[[EmbeddedEngine], bool]]] = {
    "create_group('g')": ((), lambda e: _names(e) == ["g"]),
    f"create_lun('g', 'a', {SIZE})": (PREPARED[:1], lambda e: e.groups()[0].luns[0].name == "a"),
    f"grow_lun('g', 'a', {2 * SIZE})": (
        PRESENTED,
        lambda e: e.groups()[0].luns[0].size_bytes == 2 * SIZE,
    ),
    f"present('g', 'a', ['{HOST}'])": (PREPARED, lambda e: len(e.presentations()) == 1),
    "snapshot_group('g', 's')": (PRESENTED, lambda e: [s.name for s in e.snapshots("g")] == ["s"]),
    "clone('g', 's', 'c')": (SNAPPED, lambda e: _names(e) == ["c", "g"]),
    "withdraw('g', 'a')": (PRESENTED, lambda e: e.presentations() == []),
    "delete_clone('c')": (
        (*CLONED, f"present('c', 'a', ['{HOST}'])"),
        lambda e: _names(e) == ["g"],
    ),
    "delete_snapshot('g', 's')": (SNAPPED, lambda e: e.snapshots("g") == []),
    "delete_lun('g', 'a')": (PREPARED, lambda e: e.groups()[0].luns == ()),
    "delete_group('g')": (PREPARED, lambda e: _names(e) == []),
}


def _names(engine: EmbeddedEngine) -> list[str]:
    return [group.name for group in engine.groups()]


def run(root: Path, call: str, last_line: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", KILLED_AT_A_LINE, str(root), f"engine.{call}", str(last_line)],
        capture_output=True,
        text=True,
        check=False,
    )


def reset(engine: EmbeddedEngine) -> None:
    for presentation in engine.presentations():
        engine.withdraw(presentation.group, presentation.lun)
    engine.delete_clone("c")
    for snapshot in engine.snapshots("g"):
        engine.delete_snapshot("g", snapshot.name)
    engine.delete_group("g")


def check_nothing_is_left_over(root: Path, engine: EmbeddedEngine) -> None:
    assert Records(root / "records.sqlite").removals() == []
    assert not [path for path in root.rglob("*") if path.name.startswith(".making-")]
    expected = {group.name for group in engine.groups()}
    assert {path.name for path in (root / "groups").iterdir()} == expected
    for group in engine.groups():
        images = {path.name for path in (root / "groups" / group.name).iterdir()}
        assert images == {f"{lun.name}.img" for lun in group.luns}
        directory = root / "snapshots" / group.name
        kept = {path.name for path in directory.iterdir()} if directory.exists() else set()
        assert kept == {snapshot.name for snapshot in engine.snapshots(group.name)}
    presented = {presentation.group for presentation in engine.presentations()}
    for name in ("g", "c"):
        process = find_process(TgtSocket(engine.runtime_directory / f"{name}.tgt"))
        assert (process is not None) == (name in presented)
        if process is not None:
            with process:
                assert not process.partly_stopped()


@pytest.mark.parametrize(
    "share", [5, pytest.param(60, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
)
@pytest.mark.parametrize("call", sorted(CALLS))
def test_killed_at_any_line(pool: Path, call: str, share: int) -> None:
    preparation, done = CALLS[call]

    def prepare() -> None:
        engine = EmbeddedEngine("test", pool, reserve_bytes=1)
        reset(engine)
        for step in preparation:
            eval(f"engine.{step}", {"engine": engine})

    prepare()
    whole = run(pool, call, -1)
    assert whole.returncode == 0, whole.stderr
    lines = int(whole.stdout)
    assert lines > share
    kills = 0
    for number in range(share):
        prepare()
        killed = run(pool, call, 1 + number * (lines - 1) // (share - 1))
        # Polling makes the number of lines vary: the last ones may not come this time.
        assert killed.returncode in (-signal.SIGKILL, 0), killed.stderr
        kills += killed.returncode == -signal.SIGKILL
        engine = EmbeddedEngine("test", pool, reserve_bytes=1)
        engine.reconcile()
        check_nothing_is_left_over(pool, engine)
        assert engine.reconcile() == []
        eval(f"engine.{call}", {"engine": engine})
        assert done(engine)
        check_nothing_is_left_over(pool, engine)
        assert engine.reconcile() == []
    assert kills >= share // 2
