"""Volumes that the array itself presents, over iSCSI or Fibre Channel, and that we read over iSCSI."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from atoll.model.errors import StorageConflictError
from atoll.model.readers import BlockReader
from atoll.model.storage import Portal
from atoll.storage.backend import Export, Place, SnapshotTimes, VolumeIdentity
from atoll.storage.drivers.array import Proxy, ReadingCopies, ReadingCopy, refuse_read_only
from atoll.storage.drivers.cinder.connections import chap, connector, connectors, host_name, portals
from atoll.storage.drivers.cinder.remembered import GIB, Connection, Group, Remembered, Volume
from atoll.storage.drivers.cinder.settings import Settings
from atoll.storage.initiator import IscsiLun
from atoll.storage.sidecar.client import Sidecar

_ARRAY = "The array"


class ArrayPath:
    """A DataPath by `initialize_connection`: a connection per volume and host, each noted.

    The array chooses LUN numbers, and CHAP secrets if its driver is told to use
    CHAP: those are written to `accounts`, for the hosts' admin.
    """

    def __init__(
        self,
        settings: Settings,
        place: Place,
        remembered: Remembered,
        sidecar: Sidecar,
        accounts: Path,
    ) -> None:
        self._settings = settings
        self._remembered = remembered
        self._sidecar = sidecar
        self._accounts = accounts
        self._initiator = settings.proxy(place.id)
        self._copies = ReadingCopies(place, self, Proxy(self._initiator, None))

    def identify(self, volume: Volume) -> VolumeIdentity:
        """Ask the volume itself, over a connection made for that."""
        with self._reached(volume) as lun:
            said = lun.inquiry()
        return VolumeIdentity(said.naa, said.serial, said.vendor, said.product)

    def measure(self, volume: Volume) -> int:
        """Ask the volume itself."""
        with self._reached(volume) as lun:
            return lun.read_capacity()

    def sizes(self, volumes: Mapping[str, Volume]) -> Mapping[str, int]:
        """As noted: drivers have no common way to ask."""
        return {volume.id: volume.gib * GIB for volume in volumes.values()}

    def let_go(self, volume: Volume) -> None:
        """End all its connections."""
        for connection in self._remembered.connections(volume.id):
            self._disconnect(connection)

    def forget_group(self, group: str) -> None:
        """Nothing is kept for a group."""

    def while_held(self, group: str, action: Callable[[], None]) -> SnapshotTimes:
        """Writes to an array do not pass through this machine."""
        raise StorageConflictError(
            f"The driver {self._settings.volume_driver} has no consistent snapshot of several volumes "
            "on this array, and one by one they would not be one instant; keep one LUN in each LUN "
            "group."
        )

    def open_snapshot(self, volume: str, snapshot: str) -> BlockReader:
        """Read a copy of it over iSCSI."""
        return self._copies.open(volume, snapshot)

    def clear(self) -> None:
        """Remove reading copies whose readers died."""
        self._copies.clear()

    def serve(self, group: str, exports: Sequence[Export]) -> Sequence[str]:
        """Connect the group's volumes to the hosts of exactly these initiators."""
        refuse_read_only(exports, _ARRAY)
        self._refuse_chap(exports)
        wanted = {
            (export.volume, host): told
            for export in exports
            for host, told in connectors(self._settings, export.initiators).items()
        }
        done = []
        now = {
            (connection.volume, connection.host): connection
            for connection in self._remembered.connections()
            if connection.group == group and not connection.here
        }
        for key, connection in now.items():
            # One without a kind was cut short: it may be there or not.
            if wanted.get(key) != connection.connector or not connection.kind:
                self._disconnect(connection)
                done.append(f"Withdrew volume {connection.volume} from {connection.host}.")
            else:
                del wanted[key]
        for (volume, host), told in wanted.items():
            self._connect(self._known(volume), Connection(volume, group, told))
            done.append(f"Presented volume {volume} to {host}.")
        if self._tell_accounts():
            done.append(
                f"The array asks hosts for CHAP; users and secrets are in {self._accounts}."
            )
        return done

    def portals(self, group: str, export: Export) -> Sequence[Portal]:
        """Where the array said that its hosts find it; nowhere before it was served."""
        return portals(
            connection
            for connection in sorted(
                self._remembered.connections(export.volume), key=lambda each: each.host
            )
            if connection.kind and not connection.here
        )

    def served(self) -> Collection[str]:
        """None by this machine: the array serves by itself."""
        return ()

    def release(self, group: str) -> bool:
        """There is no barrier here."""
        return False

    def stop(self, group: str) -> bool:
        """Nothing on this machine serves."""
        return False

    def reading_copies(self) -> Collection[str]:
        """Tokens of the copies that are noted."""
        return [copy.token for copy in self._remembered.copies()]

    def make_reading_copy(self, token: str, volume: str, snapshot: str) -> ReadingCopy:
        """A volume from the snapshot, connected to this machine."""
        taken = self._remembered.snapshot(snapshot)
        if taken is None or volume not in taken.members:
            raise StorageConflictError(
                f"Snapshot {snapshot} of volume {volume} is not known; it was deleted meanwhile."
            )
        group = Group(_id("group", token), token=token) if taken.whole else None
        if group is not None:
            self._remembered.keep_group(group)
        copy = Volume(
            _id("copy", token),
            group.id if group is not None else "",
            taken.members[volume].gib,
            f"reading-{token[:8]}",
            token=token,
        )
        self._remembered.keep_volume(copy)
        (model,) = self._sidecar.call(
            "copy",
            parts=[(copy.told(), taken.told(volume), self._known(volume).told())],
            group=group.told() if group is not None else None,
        )
        copy = replace(copy, model=model, made=True)
        self._remembered.keep_volume(copy)
        connection = self._connect_here(copy)
        return ReadingCopy(portals([connection]), None, chap=chap(connection.data))

    def remove_reading_copy(self, token: str) -> None:
        """Disconnect and delete it."""
        group = self._remembered.group(_id("group", token))
        told = group.told() if group is not None else None
        copy = self._remembered.volume(_id("copy", token))
        if copy is not None:
            self.let_go(copy)
            self._sidecar.call("delete_volume", volume=copy.told(), group=told)
            self._remembered.forget_volume(copy.id)
        if group is not None:
            self._sidecar.call("delete_group", group=told)
            self._remembered.forget_group(group.id)

    @contextmanager
    def _reached(self, volume: Volume) -> Iterator[IscsiLun]:
        connection = self._connect_here(volume)
        try:
            where = portals([connection])[0]
            address = f"[{where.address}]" if ":" in where.address else where.address
            account = chap(connection.data)
            with IscsiLun(
                f"{address}:{where.port}", where.target, where.lun_number, self._initiator,
                chap=account,
            ) as lun:  # fmt: skip
                yield lun
        finally:
            self._disconnect(connection)

    def _connect_here(self, volume: Volume) -> Connection:
        name = host_name(self._initiator)
        return self._connect(
            volume,
            Connection(volume.id, volume.group, connector(name, [self._initiator]), here=True),
        )

    def _connect(self, volume: Volume, connection: Connection) -> Connection:
        others = self._others(connection)
        self._remembered.keep_connection(connection)
        reply = self._sidecar.call(
            "connect",
            volume=volume.told(others),
            connector=connection.connector,
            here=connection.here,
        )
        if reply["model"] != volume.model:
            self._remembered.keep_volume(replace(volume, model=reply["model"]))
        connection = replace(connection, kind=reply["kind"], data=reply["data"])
        self._remembered.keep_connection(connection)
        return connection

    def _disconnect(self, connection: Connection) -> None:
        volume = self._remembered.volume(connection.volume)
        if volume is not None:
            self._sidecar.call(
                "disconnect",
                volume=volume.told(self._others(connection)),
                connector=connection.connector,
                here=connection.here,
            )
        self._remembered.forget_connection(connection)

    def _others(self, connection: Connection) -> list[Mapping[str, Any]]:
        return [
            each.connector
            for each in self._remembered.connections(connection.volume)
            if each.host != connection.host
        ]

    def _known(self, volume: str) -> Volume:
        found = self._remembered.volume(volume)
        if found is None:
            raise StorageConflictError(
                f"Volume {volume} is not known to the array's driver; restore the records, or delete "
                "the LUN."
            )
        return found

    def _refuse_chap(self, exports: Iterable[Export]) -> None:
        for export in exports:
            if export.chap:
                raise StorageConflictError(
                    f"The array chooses CHAP accounts itself, so {', '.join(sorted(export.chap))} "
                    "cannot have one from the settings; set the option of its driver that turns CHAP "
                    "on, and take the accounts out."
                )

    def _tell_accounts(self) -> bool:
        """Write down which host needs what, if any does; whether that changed."""
        lines = sorted(
            {
                f"{connection.host} {account.user} {account.secret}\n"
                for connection in self._remembered.connections()
                if not connection.here and (account := chap(connection.data)) is not None
            }
        )
        text = "".join(lines)
        before = self._accounts.read_text() if self._accounts.exists() else ""
        if text == before:
            return False
        fresh = self._accounts.with_suffix(f".{os.getpid()}")
        fresh.touch(mode=0o600)
        fresh.write_text(text)
        fresh.rename(self._accounts)
        return bool(text)


def _id(kind: str, token: str) -> str:
    """The id of what is made for a reading copy."""
    return sha256(f"{kind}:{token}".encode()).hexdigest()[:32]
