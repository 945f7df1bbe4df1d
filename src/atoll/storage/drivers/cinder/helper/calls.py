"""What Atoll's side can ask for: a driver's work on volumes, snapshots and groups.

Volumes, snapshots and groups come as `nouns` describes them. Calls that make or change one return its
`model`, which comes along with it from then on.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from cinder import exception
from cinder.volume import driver as cinder_driver

from atoll.model.errors import AtollError, StorageConflictError, StorageUnreachableError
from atoll.storage.drivers.cinder.helper.nouns import ADMIN, fill, kept
from atoll.storage.drivers.cinder.helper.starting import Running, pool_stats, said

_LOG = logging.getLogger(__name__)
_GIB = 1 << 30
_AT_ONCE = 16
_CONFLICTS = (
    exception.VolumeIsBusy,
    exception.SnapshotIsBusy,
    exception.Invalid,
    exception.ConsistencyGroupNotFound,
    NotImplementedError,
)
_GONE = (exception.VolumeNotFound, exception.SnapshotNotFound, exception.GroupNotFound)
_BAD = ("error", "error_deleting")

Told = Mapping[str, Any]


class Calls:
    """One method a call. `log` is where the driver's own messages go."""

    def __init__(self, running: Running, pool: str | None, log: str) -> None:
        self._driver = running.driver
        self._reader = running.reader
        self._nouns = running.nouns
        self._shelf = running.shelf
        self._stats = running.stats
        self._pool = pool
        self._log = log

    def facts(self) -> dict[str, Any]:
        """What the driver can do, as it says itself."""
        kind = type(self._driver)
        return {
            "vendor": self._stats.get("vendor_name") or "unknown",
            "protocol": str(self._stats.get("storage_protocol") or ""),
            "group_snapshots": has_group_snapshots(kind, self._stats),
            "revert": overrides(kind, "revert_to_snapshot"),
        }

    def room(self) -> list[int]:
        """Bytes of the pool, and bytes free in it."""
        with self._doing("measure the pool"):
            stats = pool_stats(self._driver, self._pool, refresh=True)
        sizes = []
        for key in ("total_capacity_gb", "free_capacity_gb"):
            try:
                sizes.append(min(int(float(stats[key]) * _GIB), 1 << 62))
            except (KeyError, OverflowError):  # `infinite`
                sizes.append(1 << 62)
            except ValueError as error:  # `unknown`
                raise StorageUnreachableError(
                    f"The array does not say how full its pool is ({key} is {stats[key]}); see "
                    f"{self._log}."
                ) from error
        return sizes

    def create_group(self, group: Told) -> dict[str, Any]:
        """A group for consistent snapshots."""
        noun = self._nouns.group(group)
        with self._doing("create a group", noun):
            return kept_of_group(self._checked(self._driver.create_group(ADMIN, noun)))

    def delete_group(self, group: Told) -> None:
        """Remove an empty group."""
        noun = self._nouns.group(group)
        with self._doing("delete a group", noun, gone_is_well=True), suppress(NotImplementedError):
            update, _ = self._driver.delete_group(ADMIN, noun, []) or (None, None)
            self._checked(update)

    def move(self, volume: Told, leaves: Told | None, joins: Told | None) -> dict[str, Any]:
        """Take a volume out of one group and put it into another."""
        for group, joining in ((leaves, False), (joins, True)):
            if group is not None:
                noun = self._nouns.group(group)
                moved = self._nouns.volume(volume, noun)
                with self._doing("change a group", moved, noun):
                    update = self._update_group(noun, moved, joining=joining)
                volume = {**volume, "model": kept(moved, update)}
        return dict(volume["model"])

    def create_volume(self, volume: Told, group: Told | None) -> dict[str, Any]:
        """An empty volume."""
        inside = self._nouns.group(group) if group else None
        noun = self._nouns.volume(volume, inside)
        with self._doing("create a volume", noun, inside):
            return kept(noun, self._driver.create_volume(noun))

    def copy(
        self, parts: Sequence[tuple[Told, Told, Told]], group: Told | None
    ) -> list[dict[str, Any]]:
        """Volumes that hold what snapshots of others do: (volume, snapshot, its volume) of each.

        With a `group`, which must not be there yet, the snapshots are parts of one of
        a whole group, and a group is made of them: some arrays can clone such parts
        in no other way.
        """
        inside = self._nouns.group(group) if group else None
        volumes, snapshots = [], []
        for volume, snapshot, origin in parts:
            taken = self._nouns.snapshot(snapshot, self._nouns.volume(origin))
            noun = self._nouns.volume(volume, inside)
            noun.snapshot_id = taken.id
            volumes.append(noun)
            snapshots.append(taken)
        sources = [taken.volume for taken in snapshots]
        with self._doing("clone a snapshot", *volumes, inside, *snapshots, *sources):
            updates = self._copy(volumes, snapshots, inside)
            return [kept(noun, updates.get(noun.id)) for noun in volumes]

    def grow(self, volume: Told, gib: int) -> dict[str, Any]:
        """Make a volume larger."""
        noun = self._nouns.volume(volume)
        with self._doing("grow a volume", noun):
            self._driver.extend_volume(noun, gib)
        return kept(noun, None)

    def delete_volume(self, volume: Told, group: Told | None) -> None:
        """Remove a volume; one that is not there is well."""
        inside = self._nouns.group(group) if group else None
        noun = self._nouns.volume(volume, inside)
        with self._doing("delete a volume", noun, inside, gone_is_well=True):
            if inside is not None:
                self._update_group(inside, noun, joining=False)
            self._driver.remove_export(ADMIN, noun)
            self._driver.delete_volume(noun)

    def revert(self, volume: Told, snapshot: Told) -> None:
        """Make a volume what it was."""
        noun = self._nouns.volume(volume)
        taken = self._nouns.snapshot(snapshot, noun)
        with self._doing("revert a volume", noun, taken):
            self._driver.revert_to_snapshot(ADMIN, noun, taken)

    def take_group_snapshot(
        self, group_snapshot: Told, pairs: Sequence[tuple[Told, Told]]
    ) -> dict[str, Any]:
        """Snapshot all volumes of a group as the array does it; pairs of snapshot and volume."""
        whole, snapshots = self._group_snapshot(group_snapshot, pairs)
        started_at = time.time()
        with self._doing("snapshot a group", whole, whole.group, *snapshots):
            update, each = self._driver.create_group_snapshot(ADMIN, whole, snapshots)
            self._checked(update)
            updates = {one["id"]: self._checked(one) for one in each or ()}
        return {
            "model": kept_of_group(update),
            "models": [kept(noun, updates.get(noun.id)) for noun in snapshots],
            "started_at": started_at,
            "finished_at": time.time(),
        }

    def delete_group_snapshot(
        self, group_snapshot: Told, pairs: Sequence[tuple[Told, Told]]
    ) -> None:
        """Remove what `take_group_snapshot` made."""
        whole, snapshots = self._group_snapshot(group_snapshot, pairs)
        with self._doing("delete a group's snapshot", whole, *snapshots, gone_is_well=True):
            update, each = self._driver.delete_group_snapshot(ADMIN, whole, snapshots) or (None, ())
            self._checked(update)
            for one in each or ():
                self._checked(one)

    def take_snapshots(self, pairs: Sequence[tuple[Told, Told]]) -> dict[str, Any]:
        """Snapshot volumes one by one, which is one instant only if nobody writes meanwhile.

        All are asked for at once, so that the time does not grow with their number.
        Those that came about are removed again when one does not.
        """
        nouns = [self._nouns.snapshot(told, self._nouns.volume(of)) for told, of in pairs]
        with self._doing("snapshot a volume", *nouns, *(noun.volume for noun in nouns)):
            started_at = time.time()
            with ThreadPoolExecutor(_AT_ONCE) as threads:
                taking = [threads.submit(self._driver.create_snapshot, noun) for noun in nouns]
            finished_at = time.time()
            failed = [error for each in taking if (error := each.exception()) is not None]
            if failed:
                for noun in nouns:
                    self._remove_again(noun)
                raise failed[0]
            models = [kept(noun, each.result()) for noun, each in zip(nouns, taking, strict=True)]
        return {"models": models, "started_at": started_at, "finished_at": finished_at}

    def delete_snapshot(self, snapshot: Told, volume: Told) -> None:
        """Remove a volume's snapshot; one that is not there is well."""
        noun = self._nouns.snapshot(snapshot, self._nouns.volume(volume))
        with self._doing("delete a snapshot", noun, noun.volume, gone_is_well=True):
            self._driver.delete_snapshot(noun)

    def connect(self, volume: Told, connector: Told, here: bool) -> dict[str, Any]:
        """Let a host reach a volume, this machine if `here`; how, in Cinder's words, and the model."""
        driver = self._reader if here else self._driver
        noun = self._nouns.volume(volume)
        with self._doing(f"present a volume to {connector['host']}", noun):
            driver.validate_connector(connector)
            update = kept(noun, driver.create_export(ADMIN, noun, connector))
            noun = self._nouns.volume({**volume, "model": update})
            connection = driver.initialize_connection(noun, connector)
        return {
            "model": update,
            "kind": connection["driver_volume_type"],
            "data": connection["data"],
        }

    def disconnect(self, volume: Told, connector: Told, here: bool) -> None:
        """End that; `volume` tells of the other connections it keeps."""
        driver = self._reader if here else self._driver
        noun = self._nouns.volume(volume)
        with self._doing(f"withdraw a volume from {connector['host']}", noun, gone_is_well=True):
            driver.terminate_connection(noun, connector)
            if not volume["connectors"]:
                driver.remove_export(ADMIN, noun)

    def _group_snapshot(
        self, told: Told, pairs: Sequence[tuple[Told, Told]]
    ) -> tuple[Any, list[Any]]:
        inside = self._nouns.group(told["group"])
        whole = self._nouns.group_snapshot(told, inside)
        volumes = [self._nouns.volume(of, inside) for _, of in pairs]
        fill(inside, volumes)
        snapshots = [
            self._nouns.snapshot(snapshot, volume, whole)
            for (snapshot, _), volume in zip(pairs, volumes, strict=True)
        ]
        return whole, snapshots

    def _update_group(self, group: Any, volume: Any, *, joining: bool) -> Mapping[str, Any] | None:
        """What the driver says of the volume; nothing where groups are made up anew each time."""
        try:
            result = self._driver.update_group(
                ADMIN,
                group,
                add_volumes=[volume] if joining else [],
                remove_volumes=[] if joining else [volume],
            )
        except NotImplementedError:
            return None
        update, come, gone = result or (None, None, None)
        self._checked(update)
        return self._checked(next(iter((come if joining else gone) or ()), None))

    def _copy(
        self, volumes: Sequence[Any], snapshots: Sequence[Any], group: Any
    ) -> dict[str, Mapping[str, Any] | None]:
        """What the driver says of each, by Cinder's id."""
        if group is not None:
            fill(group, volumes)
            try:
                update, each = self._driver.create_group_from_src(
                    ADMIN, group, volumes, snapshots[0].group_snapshot, snapshots, None, None
                )
            except NotImplementedError:
                self._checked(self._driver.create_group(ADMIN, group))
            else:
                self._checked(update)
                return {one["id"]: self._checked(one) for one in each or ()}
        create = self._driver.create_volume_from_snapshot
        return {
            volume.id: create(volume, taken)
            for volume, taken in zip(volumes, snapshots, strict=True)
        }

    def _remove_again(self, snapshot: Any) -> None:
        with suppress(Exception):  # the first failure is told, and Atoll deletes again
            self._driver.delete_snapshot(snapshot)

    def _checked(self, update: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        if update and update.get("status") in _BAD:
            raise StorageUnreachableError(
                f"The array reports an error with {update.get('id', 'a group')}; see {self._log}."
            )
        return update

    @contextmanager
    def _doing(self, what: str, *nouns: Any, gone_is_well: bool = False) -> Iterator[None]:
        with self._shelf.holding(*nouns):
            try:
                yield
            except AtollError:
                raise
            except _GONE as error:
                if not gone_is_well:
                    raise self._failed(StorageConflictError, what, error) from error
            except _CONFLICTS as error:
                raise self._failed(StorageConflictError, what, error) from error
            except Exception as error:
                raise self._failed(StorageUnreachableError, what, error) from error

    def _failed(self, kind: type[AtollError], what: str, error: Exception) -> AtollError:
        _LOG.warning("The driver could not %s", what, exc_info=error)
        return kind(f"The array could not {what} ({said(error)}); see {self._log}.")


def overrides(kind: type, method: str) -> bool:
    """Whether a driver has its own of a method that Cinder's base classes only name."""
    own: Callable[..., Any] | None = getattr(kind, method, None)
    bases = (cinder_driver.BaseVD, cinder_driver.VolumeDriver)
    return own is not None and own not in [getattr(base, method, None) for base in bases]


def has_group_snapshots(kind: type, stats: Mapping[str, Any]) -> bool:
    """Whether the array itself snapshots a group at one instant, as its driver says."""
    said_so = bool(stats.get("consistent_group_snapshot_enabled"))
    return said_so and overrides(kind, "create_group_snapshot")


def kept_of_group(update: Mapping[str, Any] | None) -> dict[str, Any]:
    """What must be remembered of a group or its snapshot: nothing that drivers set is lasting."""
    known = ("replication_status", "replication_driver_data")
    return {key: value for key, value in (update or {}).items() if key in known and value}
