"""Objects that are kept twice: whether one of the two copies is as it was written."""

from atoll.model.errors import RepositoryDamagedError
from atoll.repository.config import CONFIG, authentic
from atoll.repository.drafts import DRAFTS, DRAFTS_KIND
from atoll.repository.holds import HOLDS, HOLDS_KIND
from atoll.repository.keys import MasterKey
from atoll.repository.lost import LOST, LOST_KIND
from atoll.repository.points import EVIDENCE, EVIDENCE_KIND, POINTS, POINTS_KIND
from atoll.repository.sealing import unchecked, unseal
from atoll.repository.slots import KEYS

_SEALED = {
    POINTS: POINTS_KIND,
    EVIDENCE: EVIDENCE_KIND,
    HOLDS: HOLDS_KIND,
    LOST: LOST_KIND,
    DRAFTS: DRAFTS_KIND,
}


def as_written(master: MasterKey, name: str, half: bytes) -> bool:
    """Whether half of an object, by its name in the store, is whole; False for other objects."""
    if name == CONFIG:
        return authentic(half, master)
    try:
        if name.startswith(KEYS):
            unchecked(half)
            return True
        for prefix, kind in _SEALED.items():
            if name.startswith(prefix):
                unseal(master, kind, name.rpartition("/")[2], half)
                return True
    except RepositoryDamagedError:
        pass
    return False
