"""Marks: which packs are going to be removed, told to everybody before it happens."""

from collections.abc import Collection, Mapping

from atoll.model.errors import RepositoryDamagedError
from atoll.repository.keys import MasterKey
from atoll.repository.sealing import new_name, seal, unseal
from atoll.repository.store import MissingObjectError, ObjectStore, own_objects

MARKS = "marks/"
KIND = "MRK"
_NAME_BYTES = 16


def put_mark(store: ObjectStore, master: MasterKey, packs: Collection[str]) -> str:
    """Say that these packs are going to go; the mark's name."""
    name = new_name()
    plain = b"".join(bytes.fromhex(pack) for pack in sorted(packs))
    store.put(MARKS + name, [seal(master, KIND, name, plain)])
    return name


def read_marks(store: ObjectStore, master: MasterKey) -> Mapping[str, frozenset[str]]:
    """The packs of each mark by its name. One that cannot be read is left out: nobody acts on it."""
    found = {}
    for info in own_objects(store, MARKS):
        name = info.name.removeprefix(MARKS)
        try:
            plain = unseal(master, KIND, name, store.get(info.name))
        except MissingObjectError:
            continue  # its packs went since it was listed
        except RepositoryDamagedError:
            continue
        found[name] = frozenset(
            plain[at : at + _NAME_BYTES].hex() for at in range(0, len(plain), _NAME_BYTES)
        )
    return found


def drop_mark(store: ObjectStore, name: str) -> None:
    """Take a mark back, or remove it when its packs are gone."""
    store.delete(MARKS + name)
