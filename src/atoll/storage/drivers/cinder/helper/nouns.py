"""Cinder's objects, made whole from what Atoll sends: drivers must find nothing left to load.

A volume comes as {"id", "gib", "label", "model", "connectors"}, a snapshot of one as {"id", "gib",
"model", "whole"}, where `whole` is the group's snapshot it is a part of, {"id", "model", "group"}, or
None. Ids are 32 hex digits and `model` holds the fields a driver had us keep.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from cinder import context, objects
from cinder.objects import base

ADMIN = context.RequestContext(user_id="atoll", project_id="atoll", is_admin=True, overwrite=False)
TYPE_ID = "8a1f3c5e-6d0b-4f3e-9a67-00a701100001"
GROUP_TYPE_ID = "8a1f3c5e-6d0b-4f3e-9a67-00a701100002"
CONSISTENT = {"consistent_group_snapshot_enabled": "<is> True"}


class Nouns:
    """Makes them for one backend: `host` is Cinder's `host@backend#pool`."""

    def __init__(self, host: str, specs: Mapping[str, str], *, multiattach: bool) -> None:
        self._host = host
        self._multiattach = multiattach
        many = {"multiattach": "<is> True"} if multiattach else {}
        self.type = objects.VolumeType(
            context=ADMIN,
            id=TYPE_ID,
            name="atoll",
            description=None,
            is_public=True,
            projects=[],
            extra_specs={**many, **specs},
            qos_specs_id=None,
            qos_specs=None,
        )

    def volume(self, told: Mapping[str, Any], group: Any = None) -> Any:
        """A volume; `group` is the Cinder group it is in, if the driver has groups."""
        model = dict(told["model"])
        volume = _whole(
            objects.Volume,
            id=dashed(told["id"]),
            user_id=ADMIN.user_id,
            project_id=ADMIN.project_id,
            host=self._host,
            size=told["gib"],
            status="in-use" if told["connectors"] else "available",
            attach_status="attached" if told["connectors"] else "detached",
            display_name=told["label"],
            display_description="Made by Atoll",
            volume_type_id=TYPE_ID,
            volume_type=self.type,
            multiattach=self._multiattach,
            group_id=group.id if group is not None else None,
            group=group,
            metadata=model.pop("metadata", {}),
            admin_metadata=model.pop("admin_metadata", {}),
            glance_metadata={},
            snapshots=objects.SnapshotList(context=ADMIN, objects=[]),
        )
        for field, value in model.items():
            setattr(volume, field, value)
        volume.volume_attachment = objects.VolumeAttachmentList(
            context=ADMIN,
            objects=[
                _whole(
                    objects.VolumeAttachment,
                    id=dashed(told["id"]),
                    volume_id=volume.id,
                    attached_host=connector["host"],
                    connector=connector,
                    attach_status="attached",
                    attach_mode="rw",
                )
                for connector in told["connectors"]
            ],
        )
        volume.obj_reset_changes()
        return volume

    def snapshot(self, told: Mapping[str, Any], volume: Any, group_snapshot: Any = None) -> Any:
        """A snapshot of one volume, maybe as a part of a group's."""
        model = dict(told["model"])
        if group_snapshot is None and told["whole"] is not None:
            whole = told["whole"]
            group_snapshot = self.group_snapshot(whole, self.group(whole["group"]))
        snapshot = _whole(
            objects.Snapshot,
            id=dashed(told["id"]),
            user_id=ADMIN.user_id,
            project_id=ADMIN.project_id,
            volume_id=volume.id,
            volume=volume,
            volume_size=told["gib"],
            volume_type_id=TYPE_ID,
            status="available",
            progress="100%",
            display_name=f"atoll-{told['id'][:8]}",
            display_description="Made by Atoll",
            metadata=model.pop("metadata", {}),
            group_snapshot_id=group_snapshot.id if group_snapshot is not None else None,
            group_snapshot=group_snapshot,
        )
        for field, value in model.items():
            setattr(snapshot, field, value)
        snapshot.obj_reset_changes()
        return snapshot

    def group(self, told: Mapping[str, Any]) -> Any:
        """A group for consistent snapshots, from {"id", "model"}; `fill` says what is in it."""
        group = _whole(
            objects.Group,
            id=dashed(told["id"]),
            user_id=ADMIN.user_id,
            project_id=ADMIN.project_id,
            host=self._host,
            name=f"atoll-{told['id'][:8]}",
            description="Made by Atoll",
            group_type_id=GROUP_TYPE_ID,
            volume_type_ids=[TYPE_ID],
            volume_types=objects.VolumeTypeList(context=ADMIN, objects=[self.type]),
            status="available",
            replication_status="disabled",
            volumes=objects.VolumeList(context=ADMIN, objects=[]),
            group_snapshots=objects.GroupSnapshotList(context=ADMIN, objects=[]),
        )
        for field, value in told["model"].items():
            setattr(group, field, value)
        group.obj_reset_changes()
        return group

    def group_snapshot(self, told: Mapping[str, Any], group: Any) -> Any:
        """A snapshot of a whole group, from {"id", "model"}."""
        taken = _whole(
            objects.GroupSnapshot,
            id=dashed(told["id"]),
            user_id=ADMIN.user_id,
            project_id=ADMIN.project_id,
            name=f"atoll-{told['id'][:8]}",
            description="Made by Atoll",
            status="available",
            group_id=group.id,
            group=group,
            group_type_id=GROUP_TYPE_ID,
            snapshots=objects.SnapshotList(context=ADMIN, objects=[]),
        )
        for field, value in told["model"].items():
            setattr(taken, field, value)
        taken.obj_reset_changes()
        return taken


def fill(group: Any, volumes: Sequence[Any]) -> None:
    """Say what is in a group."""
    group.volumes = objects.VolumeList(context=ADMIN, objects=list(volumes))
    group.obj_reset_changes()


def dashed(identifier: str) -> str:
    """An id as Cinder writes it."""
    return str(UUID(identifier))


def kept(noun: Any, update: Mapping[str, Any] | None) -> dict[str, Any]:
    """What must be remembered of an object: its fields of the driver's making, and an update's.

    `update` is what the driver returned. Statuses and what Atoll knows itself are
    left out.
    """
    fields = {field for field in _MODEL_FIELDS if field in noun.fields}
    model = {field: getattr(noun, field) for field in fields if noun.obj_attr_is_set(field)}
    model.update({key: value for key, value in (update or {}).items() if key in fields})
    return {key: value for key, value in model.items() if value}


_MODEL_FIELDS = frozenset(
    {
        "provider_id",
        "provider_location",
        "provider_auth",
        "provider_geometry",
        "metadata",
        "admin_metadata",
        "replication_driver_data",
    }
)


def _whole(kind: Any, **values: Any) -> Any:
    """An object with every field set, so that none is looked for in a database."""
    for field, what in kind.fields.items():
        if field in values:
            continue
        if what.default != base.fields.UnspecifiedDefault:
            values[field] = what.default
        elif what.nullable:
            values[field] = None
    return kind(context=ADMIN, **values)


def find(nouns: Iterable[Any], identifier: str) -> Any:
    """The one with this id, dashed or not; None when it is not among them."""
    wanted = UUID(identifier)
    return next((noun for noun in nouns if UUID(noun.id) == wanted), None)
