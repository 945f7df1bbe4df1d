"""The changes a watch heard of, numbered, for any number of readers."""

import threading
import time
from collections import deque
from collections.abc import Iterable

from atoll.model.changes import Changes, InventoryChange
from atoll.vsphere.differences import Difference

_KEPT = 10_000


class ChangeLog:
    """Numbers changes from 1 on and keeps the last ten thousand. Any thread may use it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._kept: deque[InventoryChange] = deque(maxlen=_KEPT)
        self._latest = 0
        self._closed = False

    def add(self, differences: Iterable[Difference]) -> None:
        """Tell readers."""
        at = time.time()
        with self._changed:
            for each in differences:
                self._latest += 1
                self._kept.append(
                    InventoryChange(
                        number=self._latest,
                        kind=each.kind,
                        subject=each.subject,
                        moref=each.moref,
                        at=at,
                        before=each.before,
                        after=each.after,
                        instance_uuid=each.instance_uuid,
                    )
                )
            self._changed.notify_all()

    def wait(self, since: int, seconds: float) -> Changes:
        """Changes after number `since`; waits up to `seconds` for one, not once it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._latest > since or self._closed, seconds)
            return Changes(
                latest=max(since, self._latest),
                changes=tuple(change for change in self._kept if change.number > since),
                missed=bool(self._kept) and self._kept[0].number > since + 1,
            )

    @property
    def latest(self) -> int:
        """The number of the last change so far, 0 before the first."""
        return self._latest

    def close(self) -> None:
        """Let everybody who waits go."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
