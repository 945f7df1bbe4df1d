"""VCenter: what the rest of Atoll sees of vSphere."""

from collections.abc import Mapping, Sequence
from types import TracebackType

from atoll.model.inventory import Inventory, Placement
from atoll.vsphere.hosts import rescan
from atoll.vsphere.inventory import read_inventory
from atoll.vsphere.placement import PlacementReader
from atoll.vsphere.session import Session
from atoll.vsphere.settings import VCenterSettings

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

    @classmethod
    def connect(cls, settings: VCenterSettings) -> "VCenter":
        """Connect and log in.

        AuthenticationError for a wrong password or a certificate that cannot be
        verified, VCenterUnreachableError when nothing answers.
        """
        return cls(Session(settings))

    def inventory(self) -> Inventory:
        """Hosts, datastores and VMs, read in bulk."""
        pages = self._session.page_objects
        reading = self._session.call(
            "read the inventory", lambda content: read_inventory(content, pages)
        )
        self._placement.learn(reading)
        return reading.inventory

    def placement(self, instance_uuids: Sequence[str]) -> Mapping[str, Placement]:
        """Where VMs are and what they write to now, by instance UUID; unknown VMs are left out.

        One call for the asked VMs when the inventory was read before.
        """
        return self._session.call(
            "say where the VMs are", lambda content: self._placement.read(content, instance_uuids)
        )

    def rescan(self, host: str) -> None:
        """Let a host, by name, find the LUNs presented to it and mount its volumes."""
        pages = self._session.page_objects
        self._session.call(f"rescan host {host}", lambda content: rescan(content, host, pages))

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
