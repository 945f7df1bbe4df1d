"""An engine over one of Cinder's drivers, and its sidecar's process."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from atoll.settings import StorageSection
from atoll.storage.engine import ManagedEngine
from atoll.storage.sidecar.client import Sidecar
from atoll.wiring import create_system, open_system

HOST = "iqn.1998-01.com.vmware:esx1"
GIB = 1 << 30
PYTHON = Path(f"{sys.prefix}-cinder/bin/python")


def section(directory: Path, keys: Mapping[str, Any]) -> StorageSection:
    """A storage system whose records are below `directory`."""
    return StorageSection.model_validate(
        {
            "name": "cinder",
            "reserve_bytes": 1 << 20,
            "driver": "cinder",
            "state_directory": str(directory / "state"),
            **keys,
        }
    )


@contextmanager
def opened(section: StorageSection) -> Iterator[ManagedEngine]:
    """Its engine, empty before and afterwards."""
    create_system(section)
    engine = open_system(section)
    try:
        yield engine
    finally:
        engine = open_system(section)
        engine.reconcile()
        for group in [one for one in engine.groups() if one.clone_of]:
            engine.delete_clone(group.name)
        for group in engine.groups():
            engine.delete_group(group.name, force=True)
        engine.stop()
        shutil.rmtree(engine.runtime_directory)


def sidecar_of(engine: ManagedEngine) -> Sidecar:
    """What the engine asks the array's driver by."""
    found: Sidecar = engine._backend._sidecar  # type: ignore[attr-defined]
    return found


def kill_sidecar(engine: ManagedEngine) -> None:
    """End its process as a crash would."""
    process = sidecar_of(engine)._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
