"""Turns at what is done only so often at once: copying from a datastore, serving from this machine.

What all processes of the machine have at work is counted by kernel locks on the files of one
directory, a file a slot, which end with the process that has them. So nothing is counted wrong
after a crash.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from atoll.model.errors import ConfigurationError, RunConflictError
from atoll.model.limits import Limits
from atoll.service.filelocks import lock_file

_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One of `limit` slots; `where` says what they are for."""

    name: str
    limit: int
    where: str


class Slots:
    """The slots of one state directory."""

    def __init__(self, directory: Path, limits: Limits) -> None:
        self._directory = directory / "slots"
        self._limits = limits
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigurationError(
                f"Cannot write the state directory {directory}: {error.strerror}."
            ) from error

    @contextmanager
    def copying(
        self, storage: str | None, datastore: str, tell: Callable[[str], None]
    ) -> Iterator[None]:
        """Wait until one more disk of a datastore may be copied, and count it while the block lasts.

        `storage` names its storage system, None when that is not read. `tell` gets a sentence
        once when it has to wait.
        """
        limits = self._limits
        wanted = [
            _Wanted(
                f"datastore {datastore}", limits.datastore_disks, f"from datastore {datastore}"
            ),
            _Wanted("proxy", limits.proxy_disks, "by this machine"),
        ]
        if storage is not None:
            wanted.append(
                _Wanted(
                    f"storage {storage}", limits.storage_disks, f"from storage system {storage}"
                )
            )
        told = False
        while (taken := self._take(wanted)) is None:
            if not told:
                tell(f"waits for a turn, {self._full(wanted)} ([limits] in the settings)")
                told = True
            time.sleep(_POLL_SECONDS)
        with taken:
            yield

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Count one more mount or export while the block lasts; RunConflictError when it is one too many."""
        limit = self._limits.proxy_served
        taken = self._take([_Wanted("served", limit, "")])
        if taken is None:
            raise RunConflictError(
                "This machine serves as many mounts and exports as it may "
                f"(`proxy_served` in [limits] is {limit}); end one or allow more."
            )
        with taken:
            yield

    def _take(self, wanted: Sequence[_Wanted]) -> ExitStack | None:
        """One slot of each, to be closed; None, and nothing kept, unless all are to be had."""
        with ExitStack() as stack:
            for each in wanted:
                descriptor = self._slot(each)
                if descriptor is None:
                    return None
                stack.callback(os.close, descriptor)
            return stack.pop_all()

    def _slot(self, wanted: _Wanted) -> int | None:
        for number in range(wanted.limit):
            path = self._directory / f"{quote(wanted.name, safe='')}.{number}"
            descriptor = lock_file(path, fcntl.LOCK_EX)
            if descriptor is not None:
                return descriptor
        return None

    def _full(self, wanted: Sequence[_Wanted]) -> str:
        for each in wanted:
            descriptor = self._slot(each)
            if descriptor is None:
                return f"{each.limit} at once {each.where}"
            os.close(descriptor)
        return "others are being copied"
