"""What drivers of storage arrays have in common: settings, LUN numbers, and reading over iSCSI."""

import importlib
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from atoll.model.errors import AtollError, ConfigurationError, StorageConflictError
from atoll.model.extents import Extent
from atoll.model.readers import BlockReader
from atoll.model.storage import Portal
from atoll.storage.backend import Chap, Export, Place
from atoll.storage.identity import check_initiator
from atoll.storage.initiator.reader import IscsiReader
from atoll.storage.locks import Locks

PAUSES_SECONDS = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Between tries of a call that an array did not answer or failed at. Every call bears repeating."""

_NUMBERS = range(1, 1024)
"""ESX looks no further than 1023 unless Disk.MaxLUN says so; some hosts keep 0 to themselves."""

_IQN_PREFIX = "iqn.2026-11.org.atoll:proxy."


class ArraySettings(BaseModel):
    """Where an array's management is, and who this machine is to its targets.

    Its certificate is checked against `ca_file`, or else against the system's
    authorities; `verify = false` checks nothing and lets anybody answer.
    `initiator` is the IQN that snapshots are read under, with CHAP if a user and
    a secret are given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str
    port: int = Field(default=443, ge=1, le=65535)
    ca_file: Path | None = None
    verify: bool = True
    state_directory: Path | None = None
    initiator: str | None = None
    initiator_user: str | None = None
    initiator_secret_file: Path | None = None
    request_seconds: float = Field(default=60.0, gt=0)
    """How long the array may take over one answer."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """This machine as an initiator."""

    initiator: str
    chap: Chap | None


def load_sdk(module: str, package: str, extra: str) -> ModuleType:
    """An SDK's module; ConfigurationError when it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigurationError(
            f"The driver {extra} needs the Python package {package}, which is not installed; "
            f"install atoll[{extra}]."
        ) from error


def read_secret(path: Path) -> str:
    """The first line of a file; ConfigurationError when there is none."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"Cannot read the secret file {path}; it must exist and hold one line."
        ) from error
    if not lines or not lines[0]:
        raise ConfigurationError(
            f"The secret file {path} is empty; put the secret in its first line."
        )
    return lines[0]


def proxy_of(settings: ArraySettings, place: Place) -> Proxy:
    """Who reads snapshots; without a setting, an IQN of this storage system's own."""
    initiator = check_initiator(settings.initiator or f"{_IQN_PREFIX}{place.id}")
    if settings.initiator_secret_file is None:
        return Proxy(initiator, None)
    user = settings.initiator_user or initiator
    return Proxy(initiator, Chap(user, read_secret(settings.initiator_secret_file)))


def is_fibre_channel(initiator: str) -> bool:
    """Whether an initiator is a Fibre Channel port (`naa.` and its WWPN)."""
    return initiator.startswith("naa.")


def refuse_read_only(exports: Iterable[Export], array: str) -> None:
    """StorageConflictError when something is to be shown that nobody may write to."""
    for export in exports:
        if export.read_only:
            raise StorageConflictError(
                f"{array} cannot keep initiators from writing to a LUN they reach; make a "
                "writable clone."
            )


class LunNumbers:
    """One LUN number for each volume, the same for every host, kept for as long as it exists."""

    def __init__(self, place: Place) -> None:
        self._notes = place.notes
        self._seed = place.seed
        self._locks = Locks(place.run)

    def known(self, volume: str) -> int | None:
        """The volume's number, if it has one."""
        noted = self._notes.note(f"lun:{volume}")
        return int(noted) if noted is not None else None

    def of(self, volume: str, taken: Callable[[], Collection[int]]) -> int:
        """The volume's number; a first one is chosen that neither we nor `taken` have in use."""
        number = self.known(volume)
        if number is not None:
            return number
        with self._locks.held("_luns"):  # no group can have this name
            known = self.known(volume)  # another may have been here meanwhile
            if known is not None:
                return known
            used = {int(each) for each in self._notes.notes("lun:").values()} | set(taken())
            # Systems start at different places, so that those with hosts in common rarely meet.
            for step in range(len(_NUMBERS)):
                free = _NUMBERS[(self._seed + step) % len(_NUMBERS)]
                if free not in used:
                    self._notes.put_note(f"lun:{volume}", str(free))
                    return free
        raise StorageConflictError(
            f"All LUN numbers from {_NUMBERS[0]} to {_NUMBERS[-1]} are in use; delete LUNs that "
            "nobody needs."
        )

    def forget(self, volume: str) -> None:
        """The volume is gone."""
        self._notes.put_note(f"lun:{volume}", None)


@dataclass(frozen=True, slots=True)
class ReadingCopy:
    """A copy of one volume in a snapshot, connected to this machine; `holes` None asks the LUN.

    `naa` None takes the LUN that is found there. `chap` is what the array asks for
    when it chose that itself.
    """

    portals: tuple[Portal, ...]
    naa: str | None
    holes: Callable[[], Iterable[Extent]] | None = None
    chap: Chap | None = None


class CopyMaker(Protocol):
    """Makes what an array must have for a snapshot to be read over iSCSI."""

    def reading_copies(self) -> Collection[str]:
        """Tokens of all reading copies the array has of ours, whole or not."""
        ...

    def make_reading_copy(self, token: str, volume: str, snapshot: str) -> ReadingCopy:
        """A copy of a volume in a snapshot that this machine's initiator reaches."""
        ...

    def remove_reading_copy(self, token: str) -> None:
        """Withdraw and remove it; absent is success."""
        ...


class ReadingCopies:
    """Each reading copy is locked by the process that reads it, and cleared when that is dead."""

    def __init__(self, place: Place, maker: CopyMaker, proxy: Proxy) -> None:
        self._run = place.run
        self._locks = Locks(place.run)
        self._maker = maker
        self._proxy = proxy

    def open(self, volume: str, snapshot: str) -> BlockReader:
        """Read a volume as it was; the copy goes when the reader is closed."""
        token = secrets.token_hex(8)
        with ExitStack() as undo:
            undo.callback(self._lock(token).unlink, missing_ok=True)
            undo.enter_context(self._locks.held(_lock_name(token)))
            undo.callback(self._remove_quietly, token)
            copy = self._maker.make_reading_copy(token, volume, snapshot)
            reader = IscsiReader(
                copy.portals,
                self._proxy.initiator,
                naa=copy.naa,
                chap=copy.chap or self._proxy.chap,
            )
            undo.callback(reader.close)
            return _CopyReader(reader, copy, undo.pop_all())

    def clear(self) -> None:
        """Remove the copies whose readers died."""
        for token in self._maker.reading_copies():
            with self._locks.held_if_free(_lock_name(token)) as ours:
                if ours:
                    self._maker.remove_reading_copy(token)
                    self._lock(token).unlink(missing_ok=True)

    def _remove_quietly(self, token: str) -> None:
        # What was read was read: an array that just went away must not spoil that. The next
        # start finds the copy without a reader and removes it.
        with suppress(AtollError):
            self._maker.remove_reading_copy(token)

    def _lock(self, token: str) -> Path:
        return self._run / f"{_lock_name(token)}.lock"


class _CopyReader:
    """A BlockReader over a reading copy."""

    def __init__(self, reader: IscsiReader, copy: ReadingCopy, closing: ExitStack) -> None:
        self._reader = reader
        self._holes = copy.holes or reader.holes
        self._closing = closing

    @property
    def size_bytes(self) -> int:
        """How many bytes there are."""
        return self._reader.size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`, fewer only past the end."""
        return self._reader.read(offset, length)

    def read_many(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) in order."""
        return self._reader.read_many(extents)

    def holes(self) -> Iterable[Extent]:
        """Ranges the array says hold nothing."""
        return self._holes()

    def close(self) -> None:
        """Log out and remove the copy. Closing twice is harmless."""
        self._closing.close()


def numbered(portals: Sequence[Portal], number: int) -> tuple[Portal, ...]:
    """The same portals for another LUN."""
    return tuple(Portal(each.address, each.port, each.target, number) for each in portals)


def _lock_name(token: str) -> str:
    return f"_reading-{token}"
