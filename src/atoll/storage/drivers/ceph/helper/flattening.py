"""Keeps chains of clones short: the manager copies in the background what a clone still borrows."""

from typing import Any

import rbd  # type: ignore[import-not-found]

from atoll.storage.drivers.ceph.helper.cluster import Cluster

LONGEST_CHAIN = 4
"""Images a read may have to ask, one after another. A clone deeper than that is flattened."""


def depth(cluster: Cluster, image: Any) -> int:
    """How many images are below this one, each a clone of the next."""
    try:
        pool, name, snapshot = image.parent_info()
    except rbd.ImageNotFound:
        return 0
    if pool != cluster.pool_name:
        return 1  # somebody's template, elsewhere; ours never are
    with rbd.Image(cluster.pool, name, snapshot=snapshot, read_only=True) as parent:
        return 1 + depth(cluster, parent)


def begin_flattening(cluster: Cluster, volume: str) -> None:
    """Have the manager flatten a volume when it finds time; it goes on after a crash of ours."""
    cluster.ask_manager(
        prefix="rbd task add flatten",
        image_spec=f"{cluster.pool_name}/{cluster.image_name(volume)}",
    )


def cancel_flattening(cluster: Cluster, volume: str) -> None:
    """End what `begin_flattening` began."""
    for task in cluster.ask_manager(prefix="rbd task list") or ():
        refs = task["refs"]
        if (refs.get("pool_name"), refs.get("image_name")) == (
            cluster.pool_name,
            cluster.image_name(volume),
        ):
            cluster.ask_manager(prefix="rbd task cancel", task_id=task["id"])
