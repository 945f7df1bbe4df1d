"""What our objects are called on an ONTAP system, so that nothing else is taken for ours.

FlexVols have letters, digits and underscores, up to 203 of them; a LUN is `/vol/FLEXVOL/NAME`.
"""

import hashlib
import re
from dataclasses import dataclass

_ID = re.compile(r"[0-9a-f]{32}")
_TOKEN = re.compile(r"[0-9a-f]{16}")
_SNAPSHOT = "atoll_"
_TAIL = 24


@dataclass(frozen=True, slots=True)
class Names:
    """Names of one storage system's objects; `system` is its id."""

    system: str

    @property
    def _mark(self) -> str:
        return f"atoll_{self.system}_"

    def flexvol(self, group: str) -> str:
        """The FlexVol of a LUN group."""
        return f"{self._mark}g_{group}"

    def copy(self, token: str) -> str:
        """A FlexClone that exists to be read by one process."""
        return f"{self._mark}r_{token}"

    @property
    def flexvols(self) -> str:
        """Finds the groups' FlexVols."""
        return f"{self._mark}g_*"

    @property
    def copies(self) -> str:
        """Finds the reading copies' FlexClones."""
        return f"{self._mark}r_*"

    def snapshot(self, snapshot: str) -> str:
        """A FlexVol's snapshot."""
        return f"{_SNAPSHOT}{snapshot}"

    @property
    def snapshots(self) -> str:
        """Finds our snapshots, of any FlexVol."""
        return f"{_SNAPSHOT}*"

    def lun(self, group: str, volume: str) -> str:
        """A LUN's path."""
        return f"/vol/{self.flexvol(group)}/{volume}"

    def igroup(self, initiator: str) -> str:
        """The igroup of one initiator; people recognise its tail."""
        tail = re.sub(r"[^a-z0-9]+", "_", re.split("[:.]", initiator)[-1].lower())
        digest = hashlib.sha256(initiator.lower().encode()).hexdigest()[:8]
        return f"{self._mark}{tail[:_TAIL].strip('_') or 'host'}_{digest}"

    def is_igroup(self, name: str) -> bool:
        """Whether we made this igroup."""
        return name.startswith(self._mark)

    def group_id(self, flexvol: str) -> str | None:
        """The group a FlexVol is for, or None when it is not ours."""
        return _id(flexvol, f"{self._mark}g_", _ID)

    def copy_token(self, flexvol: str) -> str | None:
        """The token of a reading copy, or None."""
        return _id(flexvol, f"{self._mark}r_", _TOKEN)

    def snapshot_id(self, name: str) -> str | None:
        """The snapshot of that name, or None when it is not ours."""
        return _id(name, _SNAPSHOT, _ID)


def volume_id(path: str) -> str | None:
    """The volume a LUN's path ends with, or None."""
    last = path.rpartition("/")[2]
    return last if _ID.fullmatch(last) else None


def _id(name: str, before: str, shape: re.Pattern[str]) -> str | None:
    found = name.removeprefix(before)
    return found if found != name and shape.fullmatch(found) else None
