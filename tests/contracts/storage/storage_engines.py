"""Every storage engine the suite runs over: a new one adds a line to ENGINES."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from atoll.model.storage import Portal
from atoll.storage.drivers.embedded import EmbeddedEngine, create_pool
from atoll.storage.interface import StorageEngine
from atoll_lab.iscsi import IscsiLun
from atoll_lab.pool import create_loop_pool, destroy

ESX1 = "iqn.1998-01.com.vmware:esx1"
ESX2 = "iqn.1998-01.com.vmware:esx2"


@dataclass
class Storage:
    """An engine under test, and `reopen`, which gives it anew as after a restart of the caller."""

    engine: StorageEngine
    reopen: Callable[[], StorageEngine]
    full: Callable[[], StorageEngine]
    names: Iterator[int] = field(default_factory=count)

    def fresh(self) -> str:
        """A group name not used before."""
        return f"group-{next(self.names)}"

    def open(self, portal: Portal, initiator: str = ESX1) -> IscsiLun:
        """The LUN behind a portal, as an initiator."""
        return IscsiLun(
            f"{portal.address}:{portal.port}", portal.target, portal.lun_number, initiator
        )


@contextmanager
def embedded(directory: Path) -> Iterator[Storage]:
    root = create_loop_pool(directory, 2 << 30)
    try:
        create_pool(root, "suite")

        def reopen(reserve_bytes: int = 1 << 20) -> EmbeddedEngine:
            return EmbeddedEngine("suite", root, reserve_bytes=reserve_bytes)

        try:
            yield Storage(reopen(), reopen, lambda: reopen(1 << 60))
        finally:
            engine = reopen()
            engine.stop()
            shutil.rmtree(engine.runtime_directory)
    finally:
        destroy(directory)


ENGINES: dict[str, Callable[[Path], AbstractContextManager[Storage]]] = {"embedded": embedded}
