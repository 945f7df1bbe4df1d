"""FlexVols, their snapshots and the LUNs in them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from atoll.model.errors import StorageConflictError, StorageUnreachableError
from atoll.storage.backend import VolumeIdentity
from atoll.storage.drivers.ontap.names import Names, volume_id
from atoll.storage.drivers.ontap.session import Ontap, OntapRefusedError, at, waits

_VENDOR, _PRODUCT, _NAA_PREFIX = "NETAPP", "LUN C-Mode", "naa.600a0980"
_FIRST_BYTES = 1 << 30
_RETURN_SECONDS = 15
"""How long the cluster holds an answer back for a job to end, before we ask for it."""

_MOVED = ("complete", "success")
_NOT_MOVED = ("failed", "failure", "paused_error")


@dataclass(frozen=True, slots=True)
class FlexVol:
    """A FlexVol; `base` is the snapshot it is a FlexClone of, by name, or None."""

    uuid: str
    name: str
    size_bytes: int
    state: str
    base: str | None


@dataclass(frozen=True, slots=True)
class OntapLun:
    """A LUN; `volume` is its id, None when it is not one of ours by name."""

    uuid: str
    path: str
    serial: str
    size_bytes: int
    online: bool

    @property
    def volume(self) -> str | None:
        """The id."""
        return volume_id(self.path)

    @property
    def identity(self) -> VolumeIdentity:
        """As it introduces itself: NAA-6 with NetApp's prefix and its serial's 12 characters."""
        naa = _NAA_PREFIX + self.serial.encode("ascii").hex()
        return VolumeIdentity(naa, self.serial, _VENDOR, _PRODUCT)


@dataclass(frozen=True, slots=True)
class Taken:
    """A snapshot of a FlexVol."""

    uuid: str
    name: str
    flexvol: str
    flexvol_uuid: str


class FlexVols:
    """What is in an SVM, of ours."""

    def __init__(
        self, ontap: Ontap, svm: str, aggregate: str, names: Names, largest_bytes: int
    ) -> None:
        self._ontap = ontap
        self._svm = svm
        self._aggregate = aggregate
        self._names = names
        self._largest_bytes = largest_bytes

    def matching(self, name: str) -> list[FlexVol]:
        """Those whose name is like this."""
        found = self._ontap.find(
            "Volume",
            "uuid,name,size,state,clone.is_flexclone,clone.parent_snapshot.name",
            **{"svm.name": self._svm, "name": name},
        )
        return [
            FlexVol(
                each["uuid"],
                each["name"],
                int(each.get("size") or 0),
                str(each.get("state")),
                at(each, "clone", "parent_snapshot", "name")
                if at(each, "clone", "is_flexclone")
                else None,
            )
            for each in found
        ]

    def find(self, name: str) -> FlexVol | None:
        """The one of that name."""
        return next(iter(self.matching(name)), None)

    def create(self, name: str, comment: str) -> FlexVol:
        """A thin FlexVol without schedules, or the one that is there."""
        return self._make(
            name,
            {
                "aggregates": [{"name": self._aggregate}],
                "size": _FIRST_BYTES,
                "space": {"snapshot": {"reserve_percent": 0}},
                "autosize": {"mode": "grow", "maximum": self._largest_bytes},
                "comment": comment,
            },
        )

    def clone(self, name: str, taken: Taken, comment: str) -> FlexVol:
        """A FlexClone of a snapshot, or the one that is there."""
        return self._make(
            name,
            {
                "clone": {
                    "is_flexclone": True,
                    "parent_volume": {"name": taken.flexvol},
                    "parent_snapshot": {"name": taken.name},
                },
                "comment": comment,
            },
        )

    def fit(self, flexvol: FlexVol, lun_bytes: int) -> None:
        """Make it large enough for its LUNs, twice over, as snapshots need room too.

        It is thin, so this takes nothing from the aggregate.
        """
        wanted = min(2 * lun_bytes + _FIRST_BYTES, self._largest_bytes)
        if flexvol.size_bytes < wanted:
            self._ontap.change(
                "Volume",
                f"grow FlexVol {flexvol.name}",
                {"uuid": flexvol.uuid},
                {"size": wanted},
                return_timeout=_RETURN_SECONDS,
            )

    def remove(self, flexvol: FlexVol, *, force: bool) -> None:
        """Delete it; the cluster can recover it for a while, unless forced."""
        self._ontap.remove(
            "Volume",
            f"delete FlexVol {flexvol.name}",
            {"uuid": flexvol.uuid},
            force=str(force).lower(),
            return_timeout=_RETURN_SECONDS,
        )

    def snapshots(self, name: str) -> list[Taken]:
        """Snapshots whose name is like this, of our groups' FlexVols.

        A FlexClone shows the snapshot it stands on as its own; that one is left out.
        """
        bases = {flexvol.name: flexvol.base for flexvol in self.matching(self._names.flexvols)}
        found = self._ontap.find(
            "Snapshot",
            "uuid,name,volume.name,volume.uuid",
            "*",
            **{"svm.name": self._svm, "volume.name": self._names.flexvols, "name": name},
        )
        return [
            Taken(each["uuid"], each["name"], each["volume"]["name"], each["volume"]["uuid"])
            for each in found
            if each["volume"]["name"] in bases and bases[each["volume"]["name"]] != each["name"]
        ]

    def take(self, flexvol: FlexVol, name: str) -> None:
        """Snapshot a FlexVol, which is one instant over its LUNs."""
        try:
            self._ontap.make(
                "Snapshot",
                f"snapshot FlexVol {flexvol.name}",
                {"name": name},
                flexvol.uuid,
                return_timeout=_RETURN_SECONDS,
            )
        except OntapRefusedError:
            if not self.snapshots(name):
                raise

    def delete_snapshot(self, taken: Taken) -> None:
        """Delete a snapshot."""
        self._ontap.remove(
            "Snapshot",
            f"delete snapshot {taken.name} of FlexVol {taken.flexvol}",
            {"uuid": taken.uuid},
            taken.flexvol_uuid,
            return_timeout=_RETURN_SECONDS,
        )

    def luns(self, flexvol: str) -> list[OntapLun]:
        """LUNs of the FlexVols whose name is like this."""
        return self._luns(**{"location.volume.name": flexvol})

    def lun(self, path: str) -> OntapLun | None:
        """The LUN of that path."""
        return next(iter(self._luns(name=path)), None)

    def known_lun(self, path: str) -> OntapLun:
        """The LUN of that path; StorageConflictError when it is not there."""
        found = self.lun(path)
        if found is None:
            raise StorageConflictError(
                f"SVM {self._svm} has no LUN {path}; it was removed or renamed by other means, "
                "bring it back."
            )
        return found

    def create_lun(self, path: str, size_bytes: int, os_type: str, comment: str) -> OntapLun:
        """A thin LUN, or the one that is there."""
        found = self.lun(path)
        if found is None:
            try:
                self._ontap.make(
                    "Lun",
                    f"create LUN {path}",
                    {
                        "svm": {"name": self._svm},
                        "name": path,
                        "os_type": os_type,
                        "comment": comment,
                        "space": {
                            "size": size_bytes,
                            "guarantee": {"requested": False},
                            "scsi_thin_provisioning_support_enabled": True,
                        },
                    },
                )
            except OntapRefusedError:
                if self.lun(path) is None:
                    raise
        return self.known_lun(path)

    def change_lun(self, lun: OntapLun, doing: str, **body: object) -> None:
        """Change one property of a LUN."""
        self._ontap.change("Lun", f"{doing} LUN {lun.path}", {"uuid": lun.uuid}, body)

    def rename_lun(self, lun: OntapLun, doing: str, path: str) -> None:
        """Give a LUN another path, which moves it if that is in another FlexVol."""
        if lun.path == path:
            return
        try:
            self.change_lun(lun, doing, name=path)
        except OntapRefusedError:
            # A call whose answer got lost may have done it before.
            found = self.lun(path)
            if found is None or found.uuid != lun.uuid:
                raise

    def settle_lun(self, lun: OntapLun, path: str, comment: str) -> None:
        """What a LUN in a new FlexClone needs: its own name and comment, and to be online."""
        self.rename_lun(lun, "rename", path)
        self.change_lun(lun, "label", comment=comment)
        self.enable(lun)

    def enable(self, lun: OntapLun) -> None:
        """Bring a LUN online, unless it is."""
        if not lun.online:
            self.change_lun(lun, "bring online", enabled=True)

    def move_lun(self, lun: OntapLun, path: str, seconds: float) -> None:
        """Into another FlexVol, identity and all; the cluster copies the data."""
        self.rename_lun(lun, "move", path)
        for _ in waits(seconds, 1.0):
            (found,) = self._ontap.find(
                "Lun",
                "name,movement.progress.state,movement.progress.failure.message",
                uuid=lun.uuid,
            )
            state = at(found, "movement", "progress", "state")
            if found["name"] == path and (state is None or state in _MOVED):
                return
            if state in _NOT_MOVED:
                raise StorageConflictError(
                    f"ONTAP could not move LUN {lun.path} to {path}: "
                    f"{at(found, 'movement', 'progress', 'failure', 'message') or state}; see to "
                    "that, then repeat the call."
                )
        raise StorageUnreachableError(
            f"ONTAP still moves LUN {lun.path} to {path}; repeat the call later."
        )

    def remove_luns(self, luns: Iterable[OntapLun]) -> None:
        """Delete LUNs that are mapped to nobody."""
        for lun in luns:
            self._ontap.remove("Lun", f"delete LUN {lun.path}", {"uuid": lun.uuid})

    def _make(self, name: str, body: dict[str, Any]) -> FlexVol:
        found = self.find(name)
        if found is None:
            try:
                self._ontap.make(
                    "Volume",
                    f"create FlexVol {name}",
                    {
                        "svm": {"name": self._svm},
                        "name": name,
                        "guarantee": {"type": "none"},
                        "snapshot_policy": {"name": "none"},
                        **body,
                    },
                    return_timeout=_RETURN_SECONDS,
                )
            except OntapRefusedError:
                if self.find(name) is None:
                    raise
            found = self.find(name)
        if found is None or found.state != "online":
            raise StorageUnreachableError(
                f"FlexVol {name} of SVM {self._svm} is not online; see why on the cluster, then "
                "repeat the call."
            )
        return found

    def _luns(self, **query: str) -> list[OntapLun]:
        found = self._ontap.find(
            "Lun",
            "uuid,name,serial_number,space.size,status.state",
            **{"svm.name": self._svm, **query},
        )
        return [
            OntapLun(
                each["uuid"],
                each["name"],
                each["serial_number"],
                int(each["space"]["size"]),
                at(each, "status", "state") == "online",
            )
            for each in found
        ]
