"""Windows as the agent's core sees it."""

from collections.abc import Sequence

from atoll_agent.mounts import Mount
from atoll_agent.system import Guarding
from atoll_agent.windows.guard import TimedGuard
from atoll_agent.windows.volumes import flush_volume


class Windows:
    """Nothing freezes here from outside of VSS, so a hold has no mounts and no sessions to end."""

    def guard(
        self, mounts: Sequence[Mount], sessions: Sequence[int], armed_seconds: float
    ) -> Guarding:
        return TimedGuard(armed_seconds)

    def sync(self, mountpoint: str) -> None:
        flush_volume(mountpoint)
