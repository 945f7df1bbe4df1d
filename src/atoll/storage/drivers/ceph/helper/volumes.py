"""Images as volumes: made, measured, grown, removed."""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import rbd  # type: ignore[import-not-found]

from atoll.model.errors import StorageConflictError, StorageUnreachableError
from atoll.storage.drivers.ceph.helper.cluster import Cluster
from atoll.storage.drivers.ceph.helper.flattening import cancel_flattening
from atoll.storage.drivers.ceph.helper.locks import VolumeLocks
from atoll.storage.drivers.ceph.names import snapshot_of

FEATURES = (
    rbd.RBD_FEATURE_LAYERING
    | rbd.RBD_FEATURE_EXCLUSIVE_LOCK
    | rbd.RBD_FEATURE_OBJECT_MAP
    | rbd.RBD_FEATURE_FAST_DIFF
    | rbd.RBD_FEATURE_DEEP_FLATTEN
)

_LABEL = "atoll_label"
_NO_CACHE = ("conf_rbd_cache", "false")
"""A setting of an image binds whoever opens it: tgtd acknowledges what the cluster has."""

_STATISTICS_SECONDS = 30.0
"""For longer than a pool made a moment ago is missing in `ceph df`."""

WATCH_SECONDS = 45.0
"""For longer than the 30 s after which the cluster forgets a client that died with an image open."""


class Volumes:
    """The volumes of one storage system."""

    def __init__(self, cluster: Cluster, locks: VolumeLocks) -> None:
        self._cluster = cluster
        self._locks = locks

    def check(self) -> None:
        """Raise unless the pool can be used."""
        with self._cluster.telling(f"list the images of pool {self._cluster.pool_name}"):
            self._cluster.volumes()
        self.room()

    def room(self) -> tuple[int, int]:
        """Bytes of data the pool holds or can still take, and bytes it can still take."""
        stats = self._statistics()
        stored, free = int(stats["stored"]), int(stats["max_avail"])
        quota = int(
            self._cluster.ask_monitor(prefix="osd pool get-quota", pool=self._cluster.pool_name)[
                "quota_max_bytes"
            ]
        )
        if quota:
            free = max(0, min(free, quota - stored))
        return stored + free, free

    def _statistics(self) -> dict[str, Any]:
        """What `ceph df` says of the pool, which it hears from the manager every few seconds."""
        deadline = time.monotonic() + _STATISTICS_SECONDS
        while True:
            for pool in self._cluster.ask_monitor(prefix="df")["pools"]:
                if pool["name"] == self._cluster.pool_name:
                    stats: dict[str, Any] = pool["stats"]
                    return stats
            if time.monotonic() > deadline:
                raise StorageUnreachableError(
                    f"Ceph does not say how full the pool {self._cluster.pool_name} is; see "
                    "whether `ceph -s` names an active manager."
                )
            time.sleep(0.5)

    def volumes(self) -> dict[str, int]:
        """Size in bytes by volume; 0 for an image that cannot be opened, half removed."""
        with self._cluster.telling("list the images"):
            names = self._cluster.volumes()
            sizes = dict(zip(names, self._cluster.at_once(self._size, names), strict=True))
            if None in sizes.values():
                still = set(self._cluster.volumes())
                sizes = {
                    name: size for name, size in sizes.items() if size is not None or name in still
                }
        return {name: size or 0 for name, size in sizes.items()}

    def create_volume(self, volume: str, size_bytes: int, label: str) -> None:
        """An empty image, thin."""
        with self._locks.held([volume]), self._cluster.telling(f"create LUN {label}"):
            name = self._cluster.image_name(volume)
            with suppress(rbd.ImageExists):  # an earlier call's
                self._cluster.rbd.create(
                    self._cluster.pool, name, size_bytes, old_format=False, features=FEATURES
                )
            with self._cluster.image(volume) as image:
                mark(image, label)

    def grow_volume(self, volume: str, size_bytes: int) -> None:
        """Resize the image, also under whoever has it open; never make it smaller."""

        def grow(volume: str) -> None:
            with self._cluster.image(volume) as image:
                if image.size() < size_bytes:
                    image.resize(size_bytes)

        with self._locks.held([volume]), self._cluster.telling(f"grow volume {volume}"):
            self._cluster.at_once(grow, [volume])

    def delete_volume(self, volume: str) -> None:
        """Remove the image and its data."""
        with self._locks.held([volume]), self._cluster.telling(f"delete volume {volume}"):
            try:
                once_free(self._cluster, volume, partial(self._remove, volume))
            except rbd.ImageNotFound as error:
                # Also what librbd says when it cannot note the removal in a full pool.
                if volume in self._cluster.volumes():
                    raise StorageUnreachableError(
                        f"Ceph did not remove the image {self._cluster.image_name(volume)}; if "
                        f"the pool {self._cluster.pool_name} is full, raise its quota or the "
                        "cluster's full ratio for a moment, and try again."
                    ) from error
            except rbd.ImageHasSnapshots as error:
                raise StorageConflictError(
                    f"The image {self._cluster.pool_name}/{self._cluster.image_name(volume)} still "
                    "has snapshots, so it was not deleted; remove those that are not Atoll's "
                    "(`rbd snap ls`)."
                ) from error
            self._locks.forget(volume)

    def _remove(self, volume: str) -> None:
        name = self._cluster.image_name(volume)
        try:
            self._cluster.rbd.remove(self._cluster.pool, name)
        except rbd.ImageHasSnapshots:
            # Ours that nobody needs: made late, when the call that wanted them had given up.
            with self._cluster.image(volume) as image:
                for each in image.list_snaps():
                    if snapshot_of(each["name"]):
                        image.remove_snap(each["name"])
            self._cluster.rbd.remove(self._cluster.pool, name)

    def _size(self, volume: str) -> int | None:
        try:
            with self._cluster.image(volume, read_only=True) as image:
                return int(image.size())
        except rbd.ImageNotFound:
            return None


def mark(image: Any, label: str) -> None:
    """Say on an image how it is to be used, and what for."""
    for key, value in (_NO_CACHE, (_LABEL, label)):
        image.metadata_set(key, value)


def once_free(cluster: Cluster, volume: str, action: Callable[[], None]) -> None:
    """Do what nobody may have the image open for.

    A client that died, or a flattening, may have: the first is waited for, the
    second is ended.
    """
    deadline = time.monotonic() + WATCH_SECONDS
    while True:
        try:
            action()
        except rbd.ImageBusy:
            if time.monotonic() > deadline:
                raise
            with suppress(StorageUnreachableError):  # who may not ask the manager began none
                cancel_flattening(cluster, volume)
            time.sleep(1)
        else:
            return
