"""The index written anew from what the packs say of themselves."""

from collections.abc import Sequence

from atoll.model.errors import RepositoryDamagedError
from atoll.repository.fetch import ChunkSource
from atoll.repository.index import INDEX, write_segment
from atoll.repository.keys import MasterKey
from atoll.repository.packs import PACKS, PackKeys, PackListing, object_name, read_listing
from atoll.repository.store import ObjectStore, own_objects


def rebuild_index(
    store: ObjectStore, master: MasterKey, source: ChunkSource, keys: PackKeys
) -> Sequence[str]:
    """List packs that no readable segment lists in a new one; returns their names.

    Then segments that cannot be read are removed. The caller holds the maintenance lock. A pack that
    a writer at work has not listed yet is then listed twice, which is harmless. Packs with a damaged
    footer stay unlisted and are left alone.
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
        store.settle(PACKS)  # one may have its name of a writer that was killed before the fsync
        write_segment(store, master, listings)
    if not unreadable:
        for segment in index.damaged:
            store.delete(INDEX + segment)
    source.refresh()
    return [object_name(listing.name) for listing in listings]
