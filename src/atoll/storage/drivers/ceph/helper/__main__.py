"""`python3 -m atoll.storage.drivers.ceph.helper CONF POOL USER KEYRING SYSTEM RUN`.

KEYRING may be empty: the settings say then where the key is. SYSTEM is the id of the storage
system whose images are meant, RUN a directory for locks.
"""

import sys
from pathlib import Path

from atoll.storage.drivers.ceph.helper.cluster import Cluster
from atoll.storage.drivers.ceph.helper.locks import VolumeLocks
from atoll.storage.drivers.ceph.helper.reading import Reading
from atoll.storage.drivers.ceph.helper.snapshots import Snapshots
from atoll.storage.drivers.ceph.helper.volumes import Volumes
from atoll.storage.sidecar.server import serve


def main(conf: str, pool: str, user: str, keyring: str, system: str, run: str) -> None:
    """Answer until the other side hangs up."""
    cluster = Cluster(conf, pool, user, keyring, system)
    locks = VolumeLocks(Path(run))
    volumes = Volumes(cluster, locks)
    snapshots = Snapshots(cluster, locks)
    reading = Reading(cluster)
    # Changes are kept apart by their volumes, not by one lock for all: some take minutes.
    serve(
        {
            "check": volumes.check,
            "room": volumes.room,
            "volumes": volumes.volumes,
            "create_volume": volumes.create_volume,
            "grow_volume": volumes.grow_volume,
            "delete_volume": volumes.delete_volume,
            "snapshots": snapshots.snapshots,
            "prepare_snapshot": snapshots.prepare_snapshot,
            "take_snapshot": snapshots.take_snapshot,
            "finish_snapshot": snapshots.finish_snapshot,
            "delete_snapshot": snapshots.delete_snapshot,
            "clone": snapshots.clone,
            "revert": snapshots.revert,
            "open_snapshot": reading.open_snapshot,
            "close_snapshot": reading.close_snapshot,
            "read_each": reading.read_each,
            "holes": reading.holes,
            "changed": reading.changed,
        }
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
