"""Managed objects by their id, and the moment anything about them changed."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pyVmomi import VmomiSupport, vmodl

from atoll_lab.vcenter.objects.base import Managed


class Registry:
    """All managed objects. One lock guards objects and state; `generation` counts changes."""

    def __init__(self) -> None:
        self._objects: dict[str, Managed] = {}
        self._changed = threading.Condition(threading.RLock())
        self._generation = 0
        self._closed = False
        self.forbidden: set[tuple[str, str]] = set()
        """Object ids with a path that the user may not read."""

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold everything still."""
        with self._changed:
            yield

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Change objects; whoever waits for changes is woken at the end."""
        with self._changed:
            yield
            self._generation += 1
            self._changed.notify_all()

    def add(self, managed: Managed) -> None:
        """Make an object known under its id."""
        with self.changing():
            self._objects[managed.moid] = managed

    def remove(self, moid: str) -> None:
        """Forget an object; absent is success."""
        with self.changing():
            self._objects.pop(moid, None)

    def end_session(self, key: str) -> None:
        """Forget the views, collectors and filters of a session; whoever waits is woken."""
        with self.changing():
            self._objects = {
                moid: managed for moid, managed in self._objects.items() if managed.session != key
            }

    def get(self, moid: str) -> Managed | None:
        """The object of that id, if there is one."""
        with self._changed:
            return self._objects.get(moid)

    def require(self, moid: str) -> Managed:
        """The object of that id; vmodl ManagedObjectNotFound if it is gone."""
        managed = self.get(moid)
        if managed is None:
            raise vmodl.fault.ManagedObjectNotFound(
                msg=f"The object {moid} has already been deleted or has not been completely created",
                obj=VmomiSupport.ManagedObject(moid),
            )
        return managed

    @property
    def generation(self) -> int:
        """How many changes there were."""
        return self._generation

    @property
    def closed(self) -> bool:
        """Whether the server is going down."""
        return self._closed

    def wait_beyond(self, generation: int, seconds: float) -> bool:
        """Wait until something changed after `generation`; False when time ran out or closed."""
        with self._changed:
            return (
                self._changed.wait_for(
                    lambda: self._closed or self._generation > generation, seconds
                )
                and not self._closed
            )

    def close(self) -> None:
        """Wake every waiter for good."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
