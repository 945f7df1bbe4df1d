"""Who is to reach what: from records and CHAP accounts to what a backend serves."""

from collections.abc import Mapping, Sequence

from atoll.model.errors import StorageConflictError
from atoll.model.storage import Presentation
from atoll.storage.backend import Chap, Export, VolumeBackend
from atoll.storage.records import GroupRecord, LunRecord, Records


class Exports:
    """Keeps a backend to what the records say is presented. Callers hold the group's lock."""

    def __init__(self, backend: VolumeBackend, records: Records, chap: Mapping[str, Chap]) -> None:
        self._backend = backend
        self._records = records
        self._chap = chap

    def apply(self, group: GroupRecord) -> Sequence[str]:
        """Serve a group as recorded; one sentence per thing that was not so."""
        return self._backend.serve(group.id, self._wanted(group))

    def presentations(self, group: GroupRecord) -> list[Presentation]:
        """What is presented of a group, also while it is lost or stopped."""
        presented = self._records.presented(group.id)
        return [
            Presentation(
                lun.name,
                group.name,
                presented[lun.volume],
                tuple(self._backend.portals(group.id, self._export(group, lun, presented))),
            )
            for lun in self._records.luns(group.id)
            if lun.volume in presented
        ]

    def check(self, lun: str, initiators: Sequence[str]) -> None:
        """StorageConflictError unless these can reach a LUN together over what the backend has."""
        protocols = self._backend.capabilities.protocols
        if not initiators:
            raise StorageConflictError(
                f"No initiator was given for LUN {lun}; name at least one, or withdraw the LUN."
            )
        for initiator in initiators:
            needed = "fc" if initiator.startswith("naa.") else "iscsi"
            if needed not in protocols:
                raise StorageConflictError(
                    f"This storage system cannot present LUN {lun} to {initiator}: it speaks "
                    f"{' and '.join(sorted(protocols)) or 'to no initiators'}."
                )
        open_ones = [name for name in initiators if name not in self._chap]
        if len(open_ones) < len(initiators) and not self._backend.capabilities.chap:
            raise StorageConflictError(
                f"LUN {lun} cannot be given CHAP accounts from the settings: this storage system "
                "chooses them itself; take the initiators' accounts out."
            )
        if open_ones and len(open_ones) < len(initiators):
            raise StorageConflictError(
                f"LUN {lun} cannot go to {', '.join(open_ones)} without CHAP and to the others "
                "with it; give all of them an account in the settings, or none."
            )

    def _wanted(self, group: GroupRecord) -> list[Export]:
        presented = self._records.presented(group.id)
        return [
            self._export(group, lun, presented)
            for lun in self._records.luns(group.id)
            if lun.volume in presented and not lun.lost
        ]

    def _export(
        self, group: GroupRecord, lun: LunRecord, presented: Mapping[str, tuple[str, ...]]
    ) -> Export:
        initiators = presented[lun.volume]
        return Export(
            volume=lun.volume,
            target=lun.target,
            identity=lun.identity,
            size_bytes=lun.size_bytes,
            initiators=initiators,
            chap={name: self._chap[name] for name in initiators if name in self._chap},
            read_only=group.read_only,
        )
