"""What the agent's core needs of the operating system it runs on: Linux here, Windows in `windows`."""

import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from atoll_agent.clock import Deadline
from atoll_agent.guard import Ending, Guard
from atoll_agent.mounts import Mount
from atoll_agent.syncing import sync_filesystem


class Guarding(Protocol):
    """Whoever lets go of a hold when its time is over; `guard.Guard` says what each call means."""

    freeze_seconds: float

    @property
    def alive(self) -> bool: ...

    def begin(
        self, deadline: Deadline, lease_seconds: float, on_end: Callable[[Ending], None]
    ) -> bool: ...

    def freeze(self, deadline: Deadline) -> float: ...

    def thaw(self) -> Ending: ...


class System(Protocol):
    """An operating system."""

    def guard(
        self, mounts: Sequence[Mount], sessions: Sequence[int], armed_seconds: float
    ) -> Guarding:
        """What will freeze these file systems. Raises HoldError when it cannot be started."""
        ...

    def sync(self, mountpoint: str) -> None:
        """Write all dirty data of a file system to disk. Raises OSError."""
        ...


class Linux:
    """File systems freeze by ioctl, in a process that outlives the agent."""

    def guard(
        self, mounts: Sequence[Mount], sessions: Sequence[int], armed_seconds: float
    ) -> Guarding:
        return Guard(mounts, sessions, armed_seconds)

    def sync(self, mountpoint: str) -> None:
        sync_filesystem(mountpoint)


def is_windows() -> bool:
    """Whether this is Windows; asked when it matters, so that both can be checked on either."""
    return sys.platform.startswith("win")


def this_system() -> System:
    """The one the agent runs on."""
    if not is_windows():
        return Linux()
    from atoll_agent.windows.system import Windows

    return Windows()
