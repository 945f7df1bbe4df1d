"""What cannot be read any more, kept in mind so that the next backup of the same data brings it back."""

from collections.abc import Collection

from atoll.model.errors import RepositoryDamagedError
from atoll.repository.chunks import NAME_BYTES
from atoll.repository.index import Index
from atoll.repository.keys import MasterKey
from atoll.repository.sealing import halves, new_name, seal, twice, unseal
from atoll.repository.store import MissingObjectError, ObjectStore, own_objects

LOST = "lost/"
LOST_KIND = "LST"


def note_lost(store: ObjectStore, master: MasterKey, names: Collection[bytes]) -> None:
    """Remember chunks that no pack holds any more."""
    if names:
        name = new_name()
        store.put(LOST + name, [twice(seal(master, LOST_KIND, name, b"".join(sorted(names))))])


def noted(store: ObjectStore) -> frozenset[str]:
    """The notes there are, by name. None of them changes."""
    return frozenset(info.name for info in own_objects(store, LOST))


def read_lost(store: ObjectStore, master: MasterKey, index: Index) -> frozenset[bytes]:
    """Chunks that were noted and that the index still lacks."""
    found: set[bytes] = set()
    for info in own_objects(store, LOST):
        found.update(_names(store, master, info.name))
    return frozenset(name for name in found if name not in index)


def drop_found(store: ObjectStore, master: MasterKey, index: Index) -> None:
    """Forget notes of which every chunk has been stored again; the caller holds the maintenance lock."""
    for info in list(own_objects(store, LOST)):
        if all(name in index for name in _names(store, master, info.name)):
            store.delete(info.name)


def _names(store: ObjectStore, master: MasterKey, name: str) -> list[bytes]:
    try:
        copies = halves(store.get(name))
    except MissingObjectError:
        return []
    for copy in copies:
        try:
            plain = unseal(master, LOST_KIND, name.removeprefix(LOST), copy)
        except RepositoryDamagedError:
            continue
        return [plain[at : at + NAME_BYTES] for at in range(0, len(plain), NAME_BYTES)]
    return []  # verify names it; to refuse every backup for it would be worse
