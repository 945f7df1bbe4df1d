"""Taking a lab down: guests, vCenter, storage, files. Safe to repeat, and after any crash."""

import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

from atoll.model.errors import AtollError, RunConflictError
from atoll.service.journal import Journal
from atoll.settings import load_settings
from atoll.storage.engine import ManagedEngine
from atoll.wiring import open_engine
from atoll_lab.guests.qemu import kill
from atoll_lab.places import Places
from atoll_lab.pool import destroy
from atoll_lab.vcenter.control import Control, ControlError


def take_down(where: Places) -> None:
    """Leave nothing of the lab but the cache of built guests, which all labs share.

    Raises RunConflictError, with nothing touched, while a run works in it.
    """
    if not where.root.exists():
        return
    journal = Journal(where.state)
    with journal.tidying():
        if runs := journal.alive():
            raise RunConflictError(
                f"Run {', '.join(sorted(runs))} is still working in this lab; wait for it to end."
            )
        _take_down(where)


def _take_down(where: Places) -> None:
    if where.guests.exists():
        for run_directory in where.guests.iterdir():
            kill(run_directory)
    stop_vcenter(where)
    stop_storage(where)
    if where.storage.exists():
        destroy(where.storage)
    shutil.rmtree(where.root)
    with suppress(OSError):  # other labs may live there
        where.root.parent.rmdir()


def stop_vcenter(where: Places) -> None:
    """End the simulator if it runs, also one that does not answer."""
    control = Control(where.vcenter)
    try:
        control.shutdown()
    except ControlError:
        with suppress(ControlError, OSError):
            pid = control.endpoint().pid
            # The number may be somebody else's by now.
            if os.fsencode(where.vcenter) in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)


def stop_storage(where: Places) -> None:
    """End the pool's target processes if the pool is mounted."""
    if not where.settings.exists():
        return
    try:
        engine = open_engine(load_settings(where.settings))
    except AtollError:
        return  # no pool, so nothing of it runs
    if isinstance(engine, ManagedEngine):
        engine.stop()
        shutil.rmtree(engine.runtime_directory, ignore_errors=True)
