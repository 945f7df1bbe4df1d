"""When a pool's admin is to be warned."""

from dataclasses import dataclass

from atoll.model.storage import PoolAlarm, PoolCapacity


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Shares of the pool in use, from 0 to 1, from which on it is a warning or critical."""

    warning: float = 0.80
    critical: float = 0.90

    def alarms(
        self, capacity: PoolCapacity, reserve_bytes: int, overcommit_limit: float | None
    ) -> list[PoolAlarm]:
        """The thresholds a pool passed, the worst first."""
        alarms = []
        if capacity.free_bytes < reserve_bytes:
            alarms.append(
                PoolAlarm(
                    "critical",
                    "less is free than the reserve: snapshots and new LUNs are refused",
                )
            )
        used = capacity.used_share
        for level, share in (("critical", self.critical), ("warning", self.warning)):
            if used >= share:
                text = f"{used:.0%} of the pool is used, over the threshold of {share:.0%}"
                alarms.append(PoolAlarm("critical" if level == "critical" else "warning", text))
                break
        ratio = capacity.overcommit_ratio
        if overcommit_limit is not None and ratio > overcommit_limit:
            alarms.append(
                PoolAlarm(
                    "warning",
                    f"LUNs promise {ratio:.2f} times the pool, over the limit of "
                    f"{overcommit_limit:g}",
                )
            )
        return alarms
