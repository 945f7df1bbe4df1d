"""A real tgtd over image files in a directory: targets without a storage system behind them."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from atoll.storage.backend import Chap, Export, Place
from atoll.storage.identity import identity_of, target_name
from atoll.storage.initiator import IscsiLun
from atoll.storage.targets.tgt import BackingStore, Durability, TgtTargets

HOST = "iqn.1998-01.com.vmware:esx1"
OTHER = "iqn.1998-01.com.vmware:esx2"
MIB = 1 << 20
PORTS = range(23260, 23360)


@dataclass
class DictNotes:
    """Notes that last as long as the test."""

    kept: dict[str, str] = field(default_factory=dict)

    def note(self, key: str) -> str | None:
        return self.kept.get(key)

    def notes(self, prefix: str) -> dict[str, str]:
        return {key: value for key, value in self.kept.items() if key.startswith(prefix)}

    def put_note(self, key: str, value: str | None) -> None:
        if value is None:
            self.kept.pop(key, None)
        else:
            self.kept[key] = value


@dataclass
class TgtSite:
    """One group's daemon: `exports` is what it is to serve, by LUN name, at the next `serve`."""

    directory: Path
    addresses: tuple[str, ...] = ("127.0.0.1",)
    durability: Durability = "cache"
    group: str = field(default_factory=lambda: uuid4().hex)
    exports: dict[str, Export] = field(default_factory=dict)
    notes: DictNotes = field(default_factory=DictNotes)

    def __post_init__(self) -> None:
        self.run = self.directory / "run"
        self.run.mkdir(exist_ok=True)
        self.targets = self.targets_at(*self.addresses)

    def targets_at(self, *addresses: str) -> TgtTargets:
        """The same daemons with other settings, as after a restart with new ones."""
        identifier = hashlib.sha256(str(self.directory).encode()).hexdigest()[:12]
        place = Place(self.run, self.notes, identifier)
        return TgtTargets(place, addresses, PORTS, self._backing, self.durability)

    def _backing(self, _group: str, export: Export) -> BackingStore:
        return BackingStore("rdwr", str(self.image(export.target)))

    def image(self, name: str) -> Path:
        """The file behind a LUN, by its name or its target's."""
        return self.directory / f"{name.rpartition(':')[2]}.img"

    def add(
        self,
        name: str,
        size_bytes: int = 16 * MIB,
        *,
        initiators: Sequence[str] = (HOST,),
        chap: dict[str, Chap] | None = None,
        read_only: bool = False,
    ) -> Export:
        """Make an image, or grow it, and want it served so; `serve` does it."""
        with self.image(name).open("ab") as image:
            os.truncate(image.fileno(), size_bytes)
        known = self.exports.get(name)
        volume = known.volume if known else uuid4().hex
        self.exports[name] = Export(
            volume, target_name("test", "g", name), identity_of(volume), size_bytes,
            tuple(initiators), chap or {}, read_only,
        )  # fmt: skip
        return self.exports[name]

    def serve(self) -> list[str]:
        """Serve what is wanted; what had to be done."""
        return self.targets.serve(self.group, list(self.exports.values()))

    def portals(self, name: str) -> list[str]:
        """Where a LUN is, as `address:port`."""
        found = self.targets.portals(self.group, self.exports[name])
        return [f"{portal.address}:{portal.port}" for portal in found]

    def connect(
        self,
        name: str,
        initiator: str = HOST,
        *,
        portal: int = 0,
        chap: Chap | None = None,
        reconnect: bool = True,
        timeout_seconds: int = 60,
    ) -> IscsiLun:
        """Log in to a LUN."""
        return IscsiLun(
            self.portals(name)[portal], self.exports[name].target, 1, initiator, chap=chap,
            reconnect=reconnect, timeout_seconds=timeout_seconds,
        )  # fmt: skip


@contextmanager
def tgt_site(
    directory: Path,
    *addresses: str,
    durability: Durability = "cache",
) -> Iterator[TgtSite]:
    """A site whose daemon is ended afterwards."""
    site = TgtSite(directory, addresses or ("127.0.0.1",), durability)
    try:
        yield site
    finally:
        site.targets.stop(site.group)
