"""A lesser sidecar that reads Cinder's RBD images: `start.py … CONF POOL USER`.

librbd's bindings, the standard library and `atoll` only, so that it starts in milliseconds and a long
call of the array's driver keeps nobody from reading.
"""

import sys
from collections.abc import Sequence
from typing import Any

import rbd  # type: ignore[import-not-found]

from atoll.storage.drivers.ceph.helper.cluster import Cluster
from atoll.storage.drivers.ceph.helper.reading import Reading
from atoll.storage.sidecar.server import serve


class CinderImages(Cluster):
    """A pool in which images and their snapshots are called as Cinder calls them."""

    def image_name(self, volume: str) -> str:
        """The name itself."""
        return volume

    def open_image(
        self, volume: str, snapshot: str | None = None, *, read_only: bool = False
    ) -> Any:
        """For reading, whatever is asked."""
        return rbd.Image(self.pool, volume, snapshot=snapshot, read_only=True)

    def sizes(self, volumes: Sequence[str]) -> dict[str, int]:
        """Bytes of each of these images that is there."""
        with self.telling("list the images"):
            there = set(self.rbd.list(self.pool))
            found = {}
            for name in there.intersection(volumes):
                with self.image(name) as image:
                    found[name] = int(image.size())
            return found


def main(conf: str, pool: str, user: str) -> None:
    """Answer until the other side hangs up."""
    images = CinderImages(conf, pool, user, "", "")
    reading = Reading(images)
    serve(
        {
            "sizes": images.sizes,
            "open_snapshot": reading.open_snapshot,
            "close_snapshot": reading.close_snapshot,
            "read": reading.read,
            "holes": reading.holes,
        }
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
