"""Stands in for Cinder's database: knows what the call at hand is about, and nothing else.

Drivers mostly work on the objects they are handed. Some ask for a volume's type, for a snapshot's
volume or for the CHAP secret they once chose for an initiator; those are answered here.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cinder import exception, objects

from atoll.model.errors import StorageConflictError
from atoll.storage.drivers.cinder.helper.nouns import CONSISTENT, GROUP_TYPE_ID, find


class Shelf:
    """What drivers find under `db`. `initiators` is the file of the secrets drivers chose."""

    def __init__(self, type_: Any, initiators: Path) -> None:
        self.type = type_
        self._initiators = initiators
        self._laid_out: list[Any] = []

    @contextmanager
    def holding(self, *nouns: Any) -> Iterator[None]:
        """Have these found for the length of a call."""
        self._laid_out = [noun for noun in nouns if noun is not None]
        try:
            yield
        finally:
            self._laid_out = []

    def stand_in(self) -> None:
        """Take the database's place everywhere in Cinder as far as it is loaded."""
        from cinder import db
        from cinder.db import api

        for name, module in list(sys.modules.items()):
            if name.startswith("cinder."):
                for attribute in ("db", "db_api"):
                    if getattr(module, attribute, None) in (db, api):
                        setattr(module, attribute, self)
        objects.Volume.get_by_id = self.volume_get
        objects.Snapshot.get_by_id = self.snapshot_get
        objects.Group.get_by_id = self.group_get
        for find_type in ("get_by_id", "get_by_name_or_id"):
            setattr(objects.VolumeType, find_type, lambda *_, **__: self.type)
        for kind in (objects.Volume, objects.Snapshot, objects.Group, objects.GroupSnapshot):
            kind.save = lambda *_, **__: None

    def volume_get(self, _context: Any, identifier: str, *_: Any) -> Any:
        """One of the volumes the call is about."""
        found = self._find(objects.Volume, identifier)
        if found is None:
            raise exception.VolumeNotFound(volume_id=identifier)
        return found

    def snapshot_get(self, _context: Any, identifier: str, *_: Any) -> Any:
        """One of the snapshots the call is about."""
        found = self._find(objects.Snapshot, identifier)
        if found is None:
            raise exception.SnapshotNotFound(snapshot_id=identifier)
        return found

    def group_get(self, _context: Any, identifier: str, *_: Any) -> Any:
        """The group the call is about."""
        found = self._find(objects.Group, identifier)
        if found is None:
            raise exception.GroupNotFound(group_id=identifier)
        return found

    def volume_type_get(self, *_: Any, **__: Any) -> dict[str, Any]:
        """The only type there is."""
        return {
            "id": self.type.id,
            "name": self.type.name,
            "extra_specs": dict(self.type.extra_specs),
            "qos_specs": None,
            "qos_specs_id": None,
            "is_public": True,
        }

    def volume_type_qos_specs_get(self, *_: Any) -> dict[str, Any]:
        """None are set."""
        return {"qos_specs": None}

    def group_type_get(self, *_: Any, **__: Any) -> dict[str, Any]:
        """The only type of group: one for consistent snapshots."""
        return {
            "id": GROUP_TYPE_ID,
            "name": "atoll",
            "is_public": True,
            "group_specs": dict(CONSISTENT),
        }

    def volume_metadata_get(self, context: Any, identifier: str) -> dict[str, str]:
        """A volume's metadata."""
        return dict(self.volume_get(context, identifier).metadata)

    def volume_admin_metadata_get(self, context: Any, identifier: str) -> dict[str, str]:
        """A volume's administrative metadata."""
        return dict(self.volume_get(context, identifier).admin_metadata)

    def volume_admin_metadata_update(
        self, context: Any, identifier: str, metadata: Mapping[str, str], delete: bool, *_: Any
    ) -> dict[str, str]:
        """Set some, and with `delete` none but these. Kept when the call succeeds."""
        volume = self.volume_get(context, identifier)
        volume.admin_metadata = {**({} if delete else volume.admin_metadata), **metadata}
        return dict(volume.admin_metadata)

    def volume_admin_metadata_delete(self, context: Any, identifier: str, key: str) -> None:
        """Remove one."""
        volume = self.volume_get(context, identifier)
        volume.admin_metadata = {
            name: value for name, value in volume.admin_metadata.items() if name != key
        }

    def image_volume_cache_get_by_volume_id(self, *_: Any) -> None:
        """There are no images."""

    def driver_initiator_data_get(
        self, _context: Any, initiator: str, namespace: str
    ) -> list[dict[str, str]]:
        """What a driver keeps about an initiator, such as a CHAP secret of its choosing."""
        return [
            {"initiator": initiator, "namespace": namespace, "key": key, "value": value}
            for key, value in self._read().get(initiator, {}).items()
        ]

    def driver_initiator_data_insert_by_key(
        self, context: Any, initiator: str, _namespace: str, key: str, value: str
    ) -> None:
        """Keep one; what was kept first stays."""
        known = self._read()
        mine = known.setdefault(initiator, {})
        if key in mine:
            raise exception.DriverInitiatorDataExists(
                initiator=initiator, namespace=_namespace, key=key
            )
        mine[key] = value
        self._write(known)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise StorageConflictError(
            f"The array's driver asks Cinder's database for {name}, which Atoll does not keep, so it "
            "cannot do this; see docs/drivers/cinder.md."
        )

    def _find(self, kind: Any, identifier: str) -> Any:
        return find((noun for noun in self._laid_out if isinstance(noun, kind)), identifier)

    def _read(self) -> dict[str, dict[str, str]]:
        if not self._initiators.exists():
            return {}
        known: dict[str, dict[str, str]] = json.loads(self._initiators.read_text())
        return known

    def _write(self, known: Mapping[str, Mapping[str, str]]) -> None:
        fresh = self._initiators.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(known, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(self._initiators)
