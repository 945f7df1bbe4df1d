"""A storage system over a fake array, as settings make it, and readers that die."""

import os
import shutil
import signal
from copy import copy
from pathlib import Path
from typing import Any

from atoll.settings import StorageSection
from atoll.storage.engine import ManagedEngine
from atoll.wiring import create_system, open_system

MIB = 1 << 20


class System:
    """The system; `keys` are the driver's settings, `rules` the engine's."""

    def __init__(self, directory: Path, keys: dict[str, Any], **rules: Any) -> None:
        self._runs: set[Path] = set()
        self.section = StorageSection.model_validate(
            {
                "name": "test",
                "reserve_bytes": MIB,
                "state_directory": str(directory),
                **keys,
                **rules,
            }
        )

    def __enter__(self) -> "System":
        return self

    def __exit__(self, *_: object) -> None:
        for run in self._runs:
            shutil.rmtree(run, ignore_errors=True)

    def changed(self, **keys: Any) -> "System":
        """The same system with other settings."""
        again = copy(self)
        again.section = StorageSection.model_validate({**self.section.model_dump(), **keys})
        return again

    def create(self) -> ManagedEngine:
        """Prepare it, and the engine."""
        create_system(self.section)
        return self.open()

    def open(self, **rules: Any) -> ManagedEngine:
        """The engine as another process has it."""
        engine = open_system(self.section.model_copy(update=rules))
        self._runs.add(engine.runtime_directory)
        return engine


class Reader:
    """A process of its own that reads a snapshot until it is killed."""

    def __init__(self, system: System, group: str, lun: str, snapshot: str) -> None:
        ready, told = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                opened = system.open().open_snapshot(group, lun, snapshot)
                os.write(told, opened.read(0, 4))
                signal.pause()
            finally:
                os._exit(1)
        os.close(told)
        with os.fdopen(ready, "rb") as first:
            self.first = first.read(4)

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
