"""LIO's backstores: the block devices behind LUNs, and how they introduce themselves.

A backstore is named `<pool id>.<group>.<volume>`, so that LIO itself says what is served.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from atoll.storage.drivers.san.helper import configfs

_HBA = 0


@dataclass(frozen=True, slots=True)
class Identity:
    """What INQUIRY tells: LIO makes the NAA name from the serial's hex digits (SPC-4, 7.8.6.6.5)."""

    serial: str
    vendor: str
    product: str


@dataclass(frozen=True, slots=True)
class Backstore:
    """A volume of a group on the mapped device at `path`.

    `durable`: a write is acknowledged when it is on the disks, and the LUN shows
    no write cache. LIO's fileio does that by O_DSYNC. Its iblock leaves it to the
    initiator, as a thin device may forget what it was not told to flush.
    """

    pool: str
    group: str
    volume: str
    path: Path
    identity: Identity
    durable: bool

    @property
    def name(self) -> str:
        """What LIO calls it."""
        return f"{self.pool}.{self.group}.{self.volume}"

    @property
    def place(self) -> Path:
        """Its directory."""
        kind = "fileio" if self.durable else "iblock"
        return configfs.root() / "core" / f"{kind}_{_HBA}" / self.name

    def is_right(self) -> bool:
        """Whether it is there and is all this says."""
        place = self.place
        return (
            configfs.read(place / "enable") == "1"
            and configfs.read(place / "udev_path") == str(self.path)
            and configfs.read(place / "attrib" / "emulate_tpu") == "1"
            and configfs.read(place / "wwn" / "vpd_unit_serial").endswith(self.identity.serial)
        )

    def make(self) -> None:
        """Make it. It must not be there."""
        place, device = self.place, str(self.path)
        configfs.make(place)
        configfs.write(
            place / "control",
            f"fd_dev_name={device}" if self.durable else f"udev_path={device}",
        )
        configfs.write(place / "udev_path", device)
        configfs.write(place / "enable", "1")
        wwn = place / "wwn"
        configfs.write(wwn / "vendor_id", self.identity.vendor)
        configfs.write(wwn / "product_id", self.identity.product)
        configfs.write(wwn / "vpd_unit_serial", self.identity.serial)
        configfs.write(place / "attrib" / "emulate_tpu", "1")
        if self.durable:
            configfs.write(place / "attrib" / "emulate_write_cache", "0")


def every() -> Iterator[tuple[str, str, str, Path]]:
    """(pool, group, volume, directory) of every backstore of ours."""
    for hba in configfs.children(configfs.root() / "core"):
        for place in configfs.children(hba):
            parts = place.name.split(".")
            if len(parts) == 3:
                yield parts[0], parts[1], parts[2], place


def of_pool(pool: str) -> Iterator[tuple[str, str, Path]]:
    """(group, volume, directory) of every backstore of a pool's volumes."""
    for owner, group, volume, place in every():
        if owner == pool:
            yield group, volume, place
