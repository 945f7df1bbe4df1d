"""Snapshots of several images, and what is made of them: clones, and images as they were."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import rados  # type: ignore[import-not-found]
import rbd  # type: ignore[import-not-found]

from atoll.storage.drivers.ceph.helper.cluster import Cluster
from atoll.storage.drivers.ceph.helper.flattening import LONGEST_CHAIN, begin_flattening, depth
from atoll.storage.drivers.ceph.helper.locks import VolumeLocks
from atoll.storage.drivers.ceph.helper.volumes import (
    FEATURES,
    WATCH_SECONDS,
    mark,
    once_free,
)
from atoll.storage.drivers.ceph.names import snapshot_name, snapshot_of

_ANSWER_MILLISECONDS = 3000


class Snapshots:
    """The snapshots of one storage system's volumes."""

    def __init__(self, cluster: Cluster, locks: VolumeLocks) -> None:
        self._cluster = cluster
        self._locks = locks
        self._prepared: list[Any] = []
        self._preparing = ExitStack()

    def snapshots(self) -> list[str]:
        """Every snapshot that any image has."""
        with self._cluster.telling("list the snapshots"):
            found = self._cluster.at_once(self._snapshots_of, self._cluster.volumes())
        return sorted({snapshot for each in found for snapshot in each})

    def prepare_snapshot(self, snapshot: str, volumes: Sequence[str]) -> None:
        """Open the images, so that `take_snapshot` is short; `finish_snapshot` closes them.

        A snapshot of that name was cut short, for nobody has recorded it: it goes.
        """
        self.finish_snapshot()
        with ExitStack() as stack, self._cluster.telling("open the images to be snapshot"):
            stack.enter_context(self._locks.held(volumes))
            self._prepared = self._cluster.at_once(self._cluster.open_image, volumes)
            self._cluster.at_once(self._hear_everyone, self._prepared)
            self._cluster.at_once(partial(_remove_snapshot, snapshot), self._prepared)
            self._preparing = stack.pop_all()

    def take_snapshot(self, snapshot: str, limit_seconds: float) -> None:
        """Snapshot every image that is prepared, all at the same time."""
        with self._cluster.telling("take a snapshot"):
            self._cluster.at_once(
                partial(_create_snapshot, snapshot), self._prepared, within_seconds=limit_seconds
            )

    def finish_snapshot(self) -> None:
        """Close what was prepared; harmless when nothing is."""
        images, self._prepared = self._prepared, []
        with self._preparing, self._cluster.telling("close the images"):
            self._cluster.at_once(_close, images)

    def delete_snapshot(self, snapshot: str, volumes: Sequence[str]) -> None:
        """Remove it from these images, or from every one that has it if none is named."""
        with self._cluster.telling(f"delete snapshot {snapshot}"):
            known = volumes or self._cluster.volumes()
            with self._locks.held(known):
                self._cluster.at_once(partial(self._delete_snapshot, snapshot), known)

    def clone(self, snapshot: str, volumes: Mapping[str, str], labels: Mapping[str, str]) -> None:
        """Images that borrow a snapshot's data, by origin; `labels` by new volume."""

        def copy(pair: tuple[str, str]) -> None:
            origin, volume = pair
            with suppress(rbd.ImageExists):  # an earlier call's
                self._cluster.rbd.clone(
                    self._cluster.pool, self._cluster.image_name(origin), snapshot_name(snapshot),
                    self._cluster.pool, self._cluster.image_name(volume), features=FEATURES,
                )  # fmt: skip
            with self._cluster.image(volume) as image:
                mark(image, labels[volume])
                if depth(self._cluster, image) > LONGEST_CHAIN:
                    begin_flattening(self._cluster, volume)

        with (
            self._locks.held(volumes.values()),
            self._cluster.telling(f"clone snapshot {snapshot}"),
        ):
            self._cluster.at_once(copy, volumes.items())

    def revert(self, snapshot: str, volumes: Sequence[str]) -> None:
        """Make images what they were; takes as long as what changed since is large."""
        with self._locks.held(volumes), self._cluster.telling(f"revert to snapshot {snapshot}"):
            for volume in volumes:
                once_free(self._cluster, volume, partial(self._revert, snapshot, volume))

    def _hear_everyone(self, image: Any) -> None:
        """Have all who have the image open answer, and whoever owns its lock above all.

        A client that died counts as one of them for half a minute, and a snapshot
        waits for it. That is waited for here, where no write is held back yet.
        """
        header = f"rbd_header.{image.id()}"
        deadline = time.monotonic() + WATCH_SECONDS
        while True:
            try:
                # Nothing in it means to librbd that the image's header changed: it looks.
                self._cluster.pool.notify(header, "", timeout_ms=_ANSWER_MILLISECONDS)
            except rados.TimedOut:
                if time.monotonic() > deadline:
                    raise
            else:
                break
        # The owner must do this itself, and it is nothing; without one, we are the owner then.
        image.resize(image.size())

    def _revert(self, snapshot: str, volume: str) -> None:
        with self._cluster.image(volume) as image:
            image.rollback_to_snap(snapshot_name(snapshot))

    def _snapshots_of(self, volume: str) -> list[str]:
        try:
            with self._cluster.image(volume, read_only=True) as image:
                return _snapshots(image)
        except rbd.ImageNotFound:
            return []

    def _delete_snapshot(self, snapshot: str, volume: str) -> None:
        # A volume that is gone took its snapshots with it.
        with suppress(rbd.ImageNotFound), self._cluster.image(volume) as image:
            _remove_snapshot(snapshot, image)


def _snapshots(image: Any) -> list[str]:
    found = (snapshot_of(each["name"]) for each in image.list_snaps())
    return [snapshot for snapshot in found if snapshot]


def _create_snapshot(snapshot: str, image: Any) -> None:
    name = snapshot_name(snapshot)
    try:
        image.create_snap(name)
    except rbd.ImageExists:
        # What a killed helper had asked for and the cluster did only now. Its instant is not this one.
        image.remove_snap(name)
        image.create_snap(name)


def _remove_snapshot(snapshot: str, image: Any) -> None:
    if snapshot in _snapshots(image):
        image.remove_snap(snapshot_name(snapshot))


def _close(image: Any) -> None:
    image.close()
