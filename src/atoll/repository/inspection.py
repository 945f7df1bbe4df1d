"""Whether an object is as it was written, as far as that is to be told, before it goes into a copy."""

from typing import NamedTuple, Protocol

from atoll.model.errors import RepositoryDamagedError
from atoll.repository.chunks import ChunkCodec
from atoll.repository.config import CONFIG
from atoll.repository.doubled import as_written
from atoll.repository.holds import HOLDS, HOLDS_KIND
from atoll.repository.index import INDEX
from atoll.repository.keys import MasterKey
from atoll.repository.lost import LOST, LOST_KIND
from atoll.repository.packs import PACKS, PackKeys, check_pack, fits_form
from atoll.repository.points import EVIDENCE, EVIDENCE_KIND, POINTS, POINTS_KIND
from atoll.repository.sealing import halves, magic, twice, unchecked, unseal
from atoll.repository.segments import KIND as INDEX_KIND
from atoll.repository.slots import KEYS

_KINDS = {
    INDEX: INDEX_KIND,
    POINTS: POINTS_KIND,
    EVIDENCE: EVIDENCE_KIND,
    HOLDS: HOLDS_KIND,
    LOST: LOST_KIND,
}
_CHECKED = (CONFIG, KEYS)
_ONE_HALF = "one of its two copies is not what was written"
_NO_HALF = "neither of its two copies is what was written"


class Inspected(NamedTuple):
    """What to write of an object, None if nothing, and what is wrong with it, empty if nothing is."""

    data: bytes | None
    problem: str


class Inspect(Protocol):
    """Looks at an object by its name and bytes. Thread-safe."""

    def __call__(self, name: str, data: bytes) -> Inspected: ...


def by_form(name: str, data: bytes) -> Inspected:
    """What can be told without the key.

    That one of the two copies in an object is damaged shows, but which, only in settings and key slots;
    other objects go as they are, and a reader with the key finds the whole copy.
    """
    if name.startswith(PACKS):
        whole = fits_form(name.rpartition("/")[2], data)
        return Inspected(data, "") if whole else Inspected(None, "its beginning or end is damaged")
    if name.startswith(_CHECKED):
        return _from_halves(data, [_is_checked(half) for half in halves(data)])
    head = magic(_kind(name))
    if name.startswith(INDEX):
        whole = data.startswith(head)
        return Inspected(data, "") if whole else Inspected(None, "its beginning is damaged")
    first, second = halves(data)
    if first == second and first.startswith(head):
        return Inspected(data, "")
    if len(first) != len(second) or not (first.startswith(head) or second.startswith(head)):
        return Inspected(None, _NO_HALF)
    return Inspected(data, _ONE_HALF)


class ByKey:
    """Opens everything: each chunk of a pack, and both copies of what is kept twice."""

    def __init__(self, master: MasterKey, codec: ChunkCodec, keys: PackKeys) -> None:
        self._master = master
        self._codec = codec
        self._keys = keys

    def __call__(self, name: str, data: bytes) -> Inspected:
        """What is whole is written whole, though one of its copies was not."""
        unique = name.rpartition("/")[2]
        if name.startswith(PACKS):
            problems = check_pack(self._keys, unique, data, self._codec.unpack, None).problems
            return Inspected(None if problems else data, "; ".join(problems))
        if name.startswith(INDEX):
            try:
                unseal(self._master, INDEX_KIND, unique, data)
            except RepositoryDamagedError:
                return Inspected(None, "it is not what was written")
            return Inspected(data, "")
        return _from_halves(data, [as_written(self._master, name, half) for half in halves(data)])


def _from_halves(data: bytes, whole: list[bool]) -> Inspected:
    if all(whole):
        return Inspected(data, "")
    for good, half in zip(whole, halves(data), strict=True):
        if good:
            return Inspected(twice(half), _ONE_HALF)
    return Inspected(None, _NO_HALF)


def _is_checked(block: bytes) -> bool:
    try:
        unchecked(block)
    except RepositoryDamagedError:
        return False
    return True


def _kind(name: str) -> str:
    return next(kind for folder, kind in _KINDS.items() if name.startswith(folder))
