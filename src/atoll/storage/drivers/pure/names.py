"""What our objects are called on a FlashArray, so that nothing else is taken for ours.

Names have up to 63 letters, digits and hyphens; they begin and end with a letter or digit and hold a
letter. A container goes before them: `pod::`, `group/` or both.
"""

import hashlib
import re
from dataclasses import dataclass

_ID = re.compile(r"[0-9a-f]{32}")
_TOKEN = re.compile(r"[0-9a-f]{16}")
_SNAPSHOT = "atoll-"
_TAIL = 24


@dataclass(frozen=True, slots=True)
class Names:
    """Names of one storage system's objects; `system` is its id."""

    system: str
    pod: str | None
    volume_group: str | None

    @property
    def _pod(self) -> str:
        return f"{self.pod}::" if self.pod else ""

    @property
    def _place(self) -> str:
        return f"{self._pod}{self.volume_group}/" if self.volume_group else self._pod

    @property
    def _mark(self) -> str:
        return f"atoll-{self.system}-"

    def group(self, group: str) -> str:
        """The protection group of a LUN group; it is in the pod, never in the volume group."""
        return f"{self._pod}{self._mark}{group}"

    def volume(self, volume: str) -> str:
        """A volume."""
        return f"{self._place}{self._mark}{volume}"

    def reading_copy(self, token: str) -> str:
        """A volume that exists to be read by one process."""
        return f"{self._place}{self._mark}r-{token}"

    def snapshot_suffix(self, snapshot: str) -> str:
        """What follows the protection group's name and a dot."""
        return f"{_SNAPSHOT}{snapshot}"

    def host(self, initiator: str) -> str:
        """A host we make for an initiator; people recognise its tail."""
        tail = re.sub(r"[^a-z0-9]+", "-", re.split("[:.]", initiator)[-1].lower())
        digest = hashlib.sha256(initiator.lower().encode()).hexdigest()[:8]
        return f"{self._mark}{tail[:_TAIL].strip('-') or 'host'}-{digest}"

    @property
    def groups_filter(self) -> str:
        """Finds our protection groups."""
        return f"name='{self._pod}{self._mark}*'"

    @property
    def volumes_filter(self) -> str:
        """Finds our volumes, reading copies among them."""
        return f"name='{self._place}{self._mark}*'"

    @property
    def snapshots_filter(self) -> str:
        """Finds our groups' snapshots."""
        return f"name='{self._pod}{self._mark}*.{_SNAPSHOT}*'"

    def snapshot_filter(self, snapshot: str) -> str:
        """Finds one snapshot, whatever group it is of."""
        return f"name='{self._pod}{self._mark}*.{self.snapshot_suffix(snapshot)}'"

    def is_host(self, name: str) -> bool:
        """Whether we made this host."""
        return name.startswith(self._mark)

    def group_id(self, name: str) -> str | None:
        """The group a protection group is for, or None when it is not ours."""
        return self._id(name, self._pod + self._mark, _ID)

    def volume_id(self, name: str) -> str | None:
        """The volume of that name, or None when it is not one of ours."""
        return self._id(name, self._place + self._mark, _ID)

    def copy_token(self, name: str) -> str | None:
        """The token of a reading copy, or None."""
        return self._id(name, f"{self._place}{self._mark}r-", _TOKEN)

    def snapshot_id(self, name: str) -> str | None:
        """The snapshot a protection group's snapshot is, or None when it is not ours."""
        group, _, suffix = name.rpartition(".")
        return self._id(suffix, _SNAPSHOT, _ID) if self.group_id(group) else None

    def volume_in_snapshot(self, name: str) -> str | None:
        """The volume a volume's snapshot is of, by the last part of its name."""
        last = re.split(r"[./]|::", name)[-1]
        return self._id(last, self._mark, _ID)

    def _id(self, name: str, before: str, shape: re.Pattern[str]) -> str | None:
        found = name.removeprefix(before)
        return found if found != name and shape.fullmatch(found) else None
