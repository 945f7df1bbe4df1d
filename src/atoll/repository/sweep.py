"""Finding and removing what killed writers left, without ever touching what a point needs."""

from collections.abc import Sequence
from dataclasses import dataclass

from atoll.model.errors import RepositoryDamagedError
from atoll.repository.fetch import ChunkSource
from atoll.repository.index import INDEX, read_segment, write_segment
from atoll.repository.keys import MasterKey
from atoll.repository.packs import PACKS, PackKeys, PackListing, object_name, read_listing
from atoll.repository.points import PointLog
from atoll.repository.reach import reached
from atoll.repository.store import ObjectInfo, ObjectStore, own_objects


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Objects that no restore point needs: temporaries and whole packs.

    While a writer is at work, what it has not committed yet is among them; a
    sweep refuses to run then.
    """

    temporaries: tuple[ObjectInfo, ...]
    packs: tuple[ObjectInfo, ...]

    @property
    def size_bytes(self) -> int:
        """How much room a sweep would give back."""
        return sum(info.size_bytes for info in (*self.temporaries, *self.packs))


def find_leftovers(
    store: ObjectStore, master: MasterKey, source: ChunkSource, keys: PackKeys
) -> Leftovers:
    """Follow every point and list the packs none of them reaches.

    RepositoryDamagedError if a point, a page or an index segment cannot be read:
    what is needed cannot be known then.
    """
    points = PointLog(store, master).every_point()
    index = source.refresh()
    if index.damaged:
        raise RepositoryDamagedError(
            f"Index segment {next(iter(index.damaged))} is damaged, so it is not known which "
            "packs are needed; rebuild the index first."
        )
    needed = reached(points, source.get)
    missing = next((name for name in needed if name not in index), None)
    if missing is not None:
        raise RepositoryDamagedError(
            f"No index segment lists chunk {missing.hex()[:16]}, which a restore point needs; "
            "rebuild the index and verify the repository first."
        )
    used = {place.pack for name in needed for place in index.locations(name)}
    packs = tuple(
        info for info in own_objects(store, PACKS) if info.name.rpartition("/")[2] not in used
    )
    return Leftovers(tuple(store.temporaries()), packs)


def sweep(store: ObjectStore, master: MasterKey, source: ChunkSource, keys: PackKeys) -> Leftovers:
    """Remove the leftovers and return what they were; the caller holds the exclusive lock.

    First new segments without the packs, then the old segments go, then the
    packs: killed in between, every point is readable and the next sweep goes on.
    """
    found = find_leftovers(store, master, source, keys)
    doomed = {info.name.rpartition("/")[2] for info in found.packs}
    for segment in sorted(source.index.segments):
        packs = read_segment(store, master, segment)
        kept = [pack for pack in packs if pack.name not in doomed]
        if len(kept) == len(packs):
            continue
        if kept:
            write_segment(store, master, kept)
        store.delete(INDEX + segment)
    for info in found.packs:
        store.delete(info.name)
    for info in found.temporaries:
        store.delete_temporary(info.name)
    source.refresh()
    return found


def rebuild_index(
    store: ObjectStore, master: MasterKey, source: ChunkSource, keys: PackKeys
) -> Sequence[str]:
    """List packs that no readable segment lists in a new one; returns their names.

    Then segments that cannot be read are removed. The caller holds the exclusive
    lock. Packs with a damaged footer stay unlisted and are left alone.
    """
    index = source.refresh()
    indexed = {pack.name for pack in index.packs}
    listings: list[PackListing] = []
    unreadable = False
    for info in own_objects(store, PACKS):
        pack = info.name.rpartition("/")[2]
        if pack in indexed:
            continue
        try:
            listings.append(read_listing(store, keys, pack, info.size_bytes))
        except RepositoryDamagedError:
            unreadable = True
    if listings:
        write_segment(store, master, listings)
    if not unreadable:
        for segment in index.damaged:
            store.delete(INDEX + segment)
    source.refresh()
    return [object_name(listing.name) for listing in listings]
