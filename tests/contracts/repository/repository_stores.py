"""Every kind of store the suite runs over: a new one adds a class, and its name to `conftest`."""

import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from atoll.repository.local import LocalStore
from atoll.repository.s3 import S3Store
from atoll.repository.store import ObjectStore
from s3_proxy import Rewrite
from s3_site import S3Site, an_hour_later

# Joins the store that its arguments tell of, says so, and waits to be killed.
_JOIN = """
import sys, signal
from atoll.repository.{module} import *
store = {opened}
session = store.{call}
print(getattr(session, "name", ""), flush=True)
signal.pause()
"""


class StorePlace(ABC):
    """A place that can be opened again and again, as other processes would.

    `certain` says that of two who put the same name at once only one succeeds.
    """

    certain = True

    @abstractmethod
    def open(self) -> ObjectStore:
        """Another store over the same."""

    @abstractmethod
    def long_after(self) -> AbstractContextManager[ObjectStore]:
        """Another store, at a time when whoever was killed counts as dead."""

    @abstractmethod
    def _program(self, call: str) -> str:
        """Opens the store and calls a method of it."""

    def killed_in(self, call: str) -> str:
        """A process that was killed after this call of the store returned; its session's name."""
        child = subprocess.Popen(
            [sys.executable, "-c", self._program(call)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        with child.stdout as said:
            name = said.readline().strip()
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
        assert child.returncode == -signal.SIGKILL
        return name


class DirectoryPlace(StorePlace):
    """A directory."""

    def __init__(self, directory: Path) -> None:
        self._root = directory / "store"

    def open(self) -> ObjectStore:
        return LocalStore.create(self._root)

    @contextmanager
    def long_after(self) -> Iterator[ObjectStore]:
        yield self.open()

    def _program(self, call: str) -> str:
        opened = f"LocalStore.open(Path({str(self._root)!r}))"
        return _JOIN.format(module="local", opened=opened, call=call)


class BucketPlace(StorePlace):
    """A prefix of a bucket."""

    def __init__(self, site: S3Site, bucket: str | None = None) -> None:
        self._site = site
        self._location = site.location(bucket)

    def open(self) -> S3Store:
        return self._site.store(self._location)

    @contextmanager
    def long_after(self) -> Iterator[ObjectStore]:
        with self._site.proxy() as proxy:
            proxy.on("GET", "list-type", Rewrite(an_hour_later), always=True)
            yield self._site.store(self._location, proxy.endpoint)

    def _program(self, call: str) -> str:
        opened = f"S3Store.open({self._location!r}, {self._site.access()!r})"
        return _JOIN.format(module="s3", opened=opened, call=call).replace(
            "import sys, signal", "import sys, signal\nfrom pathlib import *"
        )


class VersionsPlace(BucketPlace):
    """A bucket with versions, where Ceph's gateway does not heed `If-None-Match`."""

    certain = False

    def __init__(self, site: S3Site) -> None:
        super().__init__(site, site.bucket(versions=True))
