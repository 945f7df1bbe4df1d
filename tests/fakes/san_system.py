"""A storage system on a SAN guest, as tests of the driver use it."""

from pathlib import Path

from atoll.settings import StorageSection
from atoll.storage.engine import ManagedEngine
from atoll.wiring import create_system, open_system
from atoll_lab.iscsi import IscsiLun
from atoll_lab.san.guest import SanGuest

HOST = "iqn.1998-01.com.vmware:esx1"
MIB = 1 << 20


class SanSystem:
    """The guest with its engine, opened anew when asked."""

    def __init__(self, guest: SanGuest, state: Path) -> None:
        self.guest = guest
        self._state = state
        self.engine = self.open()

    def open(self, **keys: object) -> ManagedEngine:
        """The engine, as after a restart of Atoll; `keys` change the settings."""
        section = {
            "name": "san",
            "reserve_bytes": MIB,
            "state_directory": str(self._state),
            **self.guest.settings,
            **keys,
        }
        system = StorageSection.model_validate(section)
        create_system(system)
        return open_system(system)

    def inside(self, script: str, timeout_seconds: float = 60.0) -> str:
        """Run Python in the guest with the helper's modules at hand; what it prints."""
        quoted = script.replace("'", "'\\''")
        command = f"PYTHONPATH=/usr/lib/atoll-san python3 -c '{quoted}'"
        return self.guest.shell.check(command, timeout_seconds)

    def connect(self, group: str, lun: str, portal: int = 0) -> IscsiLun:
        """Present a LUN and log in."""
        shown = self.engine.present(group, lun, [HOST]).portals[portal]
        return IscsiLun(f"{shown.address}:{shown.port}", shown.target, shown.lun_number, HOST)
