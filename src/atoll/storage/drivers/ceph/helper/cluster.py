"""The connection to the cluster, names in the pool, and librbd's errors in Atoll's words."""

import errno
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

import rados  # type: ignore[import-not-found]
import rbd  # type: ignore[import-not-found]

from atoll.model.errors import PoolFullError, StorageConflictError, StorageUnreachableError
from atoll.storage.drivers.ceph import names

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_THREADS = 128
"""Snapshots that are begun at once wait for the monitor once, and not in turns."""
_PATIENCE_SECONDS = 120.0
"""For what takes a moment. librbd itself waits for the owner of an image's lock without end."""
_OPTIONS = {
    # Without these a call waits for ever for a cluster that is not there.
    "client_mount_timeout": "20",
    "rados_mon_op_timeout": "30",
    "rados_osd_op_timeout": "60",
    # Clones that need no protected snapshot; Python has no other way to ask before 17.2.8.
    "rbd_default_clone_format": "2",
    "rbd_concurrent_management_ops": "32",
}


class Cluster:
    """A pool of a cluster, connected to at first use.

    `system` is the id of the storage system whose images are meant.
    """

    def __init__(self, conf: str, pool: str, user: str, keyring: str, system: str) -> None:
        self._conf = conf
        self.pool_name = pool
        self._user = user
        self._options = {**_OPTIONS, **({"keyring": keyring} if keyring else {})}
        self._system = system
        self._rados: Any = None
        self._pool: Any = None
        self._threads = ThreadPoolExecutor(_THREADS)
        self.rbd = rbd.RBD()

    @property
    def pool(self) -> Any:
        """The pool's rados.Ioctx."""
        if self._pool is None:
            with self.telling(f"use the pool {self.pool_name}"):
                pool = self._connected().open_ioctx(self.pool_name)
                # A full pool then takes what makes room and refuses the rest; else it would let
                # both wait.
                pool.set_osdmap_full_try()
                self._pool = pool
        return self._pool

    def image_name(self, volume: str) -> str:
        """What a volume's image is called."""
        return names.image_name(self._system, volume)

    def volumes(self) -> list[str]:
        """The volumes that have an image here."""
        found = (names.volume_of(self._system, name) for name in self.rbd.list(self.pool))
        return [volume for volume in found if volume]

    @contextmanager
    def image(
        self, volume: str, snapshot: str | None = None, *, read_only: bool = False
    ) -> Iterator[Any]:
        """A volume's image, or its snapshot; rbd.ImageNotFound when either is not there."""
        opened = self.open_image(volume, snapshot, read_only=read_only)
        try:
            yield opened
        finally:
            opened.close()

    def open_image(
        self, volume: str, snapshot: str | None = None, *, read_only: bool = False
    ) -> Any:
        """The same for callers who close it themselves."""
        return rbd.Image(
            self.pool,
            self.image_name(volume),
            snapshot=names.snapshot_name(snapshot) if snapshot else None,
            read_only=read_only or snapshot is not None,
        )

    def at_once(
        self,
        action: Callable[[_Item], _Result],
        items: Iterable[_Item],
        within_seconds: float = _PATIENCE_SECONDS,
    ) -> list[_Result]:
        """Do it to all of them at once; when all have ended, raise the first one's error.

        StorageUnreachableError when some have not ended in time: they go on, so the
        helper is of no more use.
        """
        # Connect first: threads share the connection.
        _ = self.pool
        started = [self._threads.submit(action, item) for item in items]
        if wait(started, timeout=within_seconds).not_done:
            raise StorageUnreachableError(
                f"Ceph did not answer within {within_seconds:g} s; see `ceph -s`: a full pool lets "
                "writes wait, and snapshots with them."
            )
        return [each.result() for each in started]

    def ask_monitor(self, **command: str) -> Any:
        """A monitor command's reply."""
        request = json.dumps({**command, "format": "json"})
        return self._reply(command["prefix"], self._connected().mon_command(request, b""))

    def ask_manager(self, **command: str) -> Any:
        """A manager command's reply."""
        request = json.dumps({**command, "format": "json"})
        return self._reply(command["prefix"], self._connected().mgr_command(request, b""))

    @contextmanager
    def telling(self, action: str) -> Iterator[None]:
        """Turn librados' and librbd's errors into Atoll's, saying that `action` failed."""
        try:
            yield
        except (rados.Error, rbd.Error) as error:
            raise _told(action, error) from error

    def _connected(self) -> Any:
        if self._rados is None:
            with self.telling(f"connect to the cluster of {self._conf} as client.{self._user}"):
                try:
                    connection = rados.Rados(
                        conffile=self._conf, rados_id=self._user, conf=self._options
                    )
                    connection.connect()
                except rados.ObjectNotFound as error:
                    raise StorageUnreachableError(
                        f"Ceph's settings {self._conf}, or the keyring of client.{self._user} that "
                        f"they or the driver's settings name, are not there ({error}); correct them."
                    ) from error
                self._rados = connection
        return self._rados

    def _reply(self, prefix: str, replied: tuple[int, bytes, str]) -> Any:
        number, output, said = replied
        if number:
            raise StorageUnreachableError(
                f"Ceph refused `{prefix}`: {said.strip() or errno.errorcode.get(-number, number)}; "
                f"check what client.{self._user} may do against docs/drivers/ceph.md."
            )
        return json.loads(output) if output.strip() else None


def _told(action: str, error: Exception) -> Exception:
    said, number = f"Ceph could not {action}: {error}", getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return PoolFullError(f"{said}; make room in the pool, or raise its quota.")
    if number in (errno.EBUSY, errno.ENOTEMPTY):
        return StorageConflictError(f"{said}; `rbd status` and `rbd snap ls` say who uses it.")
    if number in (errno.EPERM, errno.EACCES):
        return StorageUnreachableError(
            f"{said}; check the user, its keyring and its capabilities against "
            "docs/drivers/ceph.md."
        )
    if number == errno.ENOENT:
        return StorageUnreachableError(f"{said}; see `rbd ls` for what is there.")
    return StorageUnreachableError(f"{said}; see `ceph -s`, and try again.")
