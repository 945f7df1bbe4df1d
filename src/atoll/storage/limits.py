"""How full a pool may get, how much it may promise, and when its admin is to be warned."""

from dataclasses import dataclass
from typing import Literal

from atoll.model.errors import PoolFullError
from atoll.model.storage import PoolAlarm, PoolCapacity
from atoll.storage.backend import VolumeBackend
from atoll.storage.records import Records

_LEVELS: tuple[Literal["critical", "warning"], ...] = ("critical", "warning")


@dataclass(frozen=True, slots=True)
class Allowances:
    """What an admin allows a pool.

    `reserve_bytes` stay free: below that, snapshots and new LUNs are refused.
    `overcommit_limit` is the most that may be promised for each byte there is.
    From the shares `warning_used` and `critical_used`, 0 to 1, on the admin is told.
    """

    reserve_bytes: int = 1 << 30
    overcommit_limit: float | None = None
    warning_used: float = 0.80
    critical_used: float = 0.90


class Limits:
    """Keeps one system to its allowances; refusals are PoolFullError, before anything is done."""

    def __init__(
        self, system: str, backend: VolumeBackend, records: Records, allowed: Allowances
    ) -> None:
        self._system = system
        self._backend = backend
        self._records = records
        self._allowed = allowed

    def capacity(self) -> PoolCapacity:
        """How full the pool is and what its LUNs promise."""
        room = self._backend.room()
        provisioned = sum(
            lun.size_bytes
            for group in self._records.groups()
            for lun in self._records.luns(group.id)
        )
        return PoolCapacity(room.total_bytes, room.free_bytes, provisioned)

    def require_room(self) -> None:
        """Refuse when the pool is below its reserve."""
        free = self._backend.room().free_bytes
        if free < self._allowed.reserve_bytes:
            raise PoolFullError(
                f"The pool of {self._system} has {free} bytes free, below its reserve of "
                f"{self._allowed.reserve_bytes}, and nothing was changed; make room or add a disk."
            )

    def require_promise(self, size_bytes: int) -> None:
        """Refuse when so much more would be promised than allowed."""
        limit = self._allowed.overcommit_limit
        if limit is None:
            return
        capacity = self.capacity()
        promised = capacity.provisioned_bytes + size_bytes
        if promised > limit * capacity.total_bytes:
            raise PoolFullError(
                f"The LUNs of {self._system} would promise {promised} bytes of its "
                f"{capacity.total_bytes}, over the limit of {limit:g} times, and nothing was "
                "changed; add a disk or raise overcommit_limit."
            )

    def alarms(self) -> list[PoolAlarm]:
        """What was passed, the worst first."""
        allowed, capacity = self._allowed, self.capacity()
        alarms = []
        if capacity.free_bytes < allowed.reserve_bytes:
            text = "less is free than the reserve: snapshots and new LUNs are refused"
            alarms.append(PoolAlarm("critical", text))
        for level, share in zip(
            _LEVELS, (allowed.critical_used, allowed.warning_used), strict=True
        ):
            if capacity.used_share >= share:
                text = f"{capacity.used_share:.0%} of the pool is used, over the threshold of "
                alarms.append(PoolAlarm(level, f"{text}{share:.0%}"))
                break
        limit, ratio = allowed.overcommit_limit, capacity.overcommit_ratio
        if limit is not None and ratio > limit:
            text = f"LUNs promise {ratio:.2f} times the pool, over the limit of {limit:g}"
            alarms.append(PoolAlarm("warning", text))
        return alarms
