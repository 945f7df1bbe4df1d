"""VCenter: what the rest of Atoll sees of vSphere."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType

from atoll.model.inventory import Inventory, Placement
from atoll.vsphere.addresses import guest_addresses
from atoll.vsphere.hosts import rescan
from atoll.vsphere.import_vm import VmImports
from atoll.vsphere.inventory import read_inventory
from atoll.vsphere.island_volumes import IslandVolumes
from atoll.vsphere.placeholder_vms import Placeholders
from atoll.vsphere.placement import PlacementReader
from atoll.vsphere.recovered_vms import RecoveredVms
from atoll.vsphere.session import Session
from atoll.vsphere.settings import VCenterSettings
from atoll.vsphere.snapshots import VmwareSnapshots
from atoll.vsphere.watch import Watch

__all__ = ["VCenter", "VCenterSettings"]


class VCenter:
    """A vCenter one is logged in to; any thread may use it.

    An expired session is opened again without a word. Every call raises
    VCenterUnreachableError when vCenter does not answer, AuthenticationError
    when it does not accept the user any more, and VCenterOperationError when
    it refuses or fails; reads are safe to repeat.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._placement = PlacementReader(session.page_objects)
        self._lock = threading.Lock()
        self._watch: Watch | None = None
        self._followers = 0

    @classmethod
    def connect(cls, settings: VCenterSettings) -> "VCenter":
        """Connect and log in.

        AuthenticationError for a wrong password or a certificate that cannot be
        verified, VCenterUnreachableError when nothing answers.
        """
        return cls(Session(settings))

    def inventory(self) -> Inventory:
        """Hosts, datastores and VMs as they are now: read in bulk, or known by following."""
        watch = self._watch
        reading = watch.reading() if watch is not None else None
        if reading is None:
            pages = self._session.page_objects
            reading = self._session.call(
                "read the inventory", lambda content: read_inventory(content, pages)
            )
        self._placement.learn(reading)
        return reading.inventory

    def guest_addresses(self) -> Mapping[str, str]:
        """The primary IP address of each VM whose guest tells one, by moref."""
        pages = self._session.page_objects
        return self._session.call(
            "read the guests' addresses", lambda content: guest_addresses(content, pages)
        )

    def placement(self, instance_uuids: Sequence[str]) -> Mapping[str, Placement]:
        """Where VMs are and what they write to now, by instance UUID.

        VMs that vCenter does not know, or has no contact with, are left out. One
        call for the asked VMs when the inventory was read before; while vCenter
        is followed two short ones however many VMs are asked for.
        """
        watch = self._watch
        known = watch.placement(instance_uuids) if watch is not None else None
        if known is not None:
            return known
        return self._session.call(
            "say where the VMs are", lambda content: self._placement.read(content, instance_uuids)
        )

    @contextmanager
    def follow(self) -> Iterator[Watch]:
        """Follow vCenter live inside the `with`; other threads that do so share one watch.

        `inventory` and `placement` are then answered from it where that is
        proven to be current, and read from vCenter as ever where it is not.
        Raises as `inventory` does when the first picture cannot be had.
        """
        with self._lock:
            if self._watch is None:
                watch = Watch(self._session.another())
                watch.start()
                self._watch = watch
            self._followers += 1
            watch = self._watch
        try:
            yield watch
        finally:
            with self._lock:
                self._followers -= 1
                last = self._followers == 0
                if last:
                    self._watch = None
            if last:
                watch.close()

    def rescan(self, host: str) -> None:
        """Let a host, by name, find the LUNs presented to it and mount its volumes."""
        pages = self._session.page_objects
        self._session.call(f"rescan host {host}", lambda content: rescan(content, host, pages))

    def island_volumes(self, host: str) -> IslandVolumes:
        """The copies of volumes that a host, by name, sees and has taken in."""
        return IslandVolumes(self._session, host)

    def placeholders(self, host: str, home: str, folder: str) -> Placeholders:
        """The placeholder VMs on a host; `home` names the datastore of their own files."""
        return Placeholders(self._session, host, home, folder)

    def imports(self) -> VmImports:
        """Imports of whole VMs."""
        return VmImports(self._session)

    def recovered(self) -> RecoveredVms:
        """VMs recovered in place."""
        return RecoveredVms(self._session)

    def snapshots(self, site: str) -> VmwareSnapshots:
        """The VMware snapshots of this Atoll; `site` tells it from others on the same vCenter."""
        return VmwareSnapshots(self._session, site)

    def close(self) -> None:
        """Log out."""
        self._session.close()

    def __enter__(self) -> "VCenter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
