"""Who is at work in a bucket: small objects that are written again and again while their owner lives.

An object store has no lock that ends with its holder. So whoever is at work keeps a *beacon*, an object
that he overwrites every minute, and who finds one that is older than the limit takes its owner for dead
and removes it. Ages are told by the server's clock alone: a beacon's is compared with that of an object
that the asker has just put. Whoever could not overwrite his own for two thirds of the limit, by a clock
that runs on while the machine sleeps, counts himself as dead, a third of the limit before others do.
"""

import secrets
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from atoll.model.errors import RepositoryUnreachableError, RunConflictError
from atoll.repository.s3_faults import Patience, S3Fault, explained
from atoll.repository.s3_objects import Found, S3Objects
from atoll.repository.store import SessionSeen

SESSIONS = "sessions/"
MAINTENANCE = "maintenance/"
_CLOCK = ".clock"
_ENDED = (
    "This process could not be heard of for so long, or was taken for dead by another that tidies "
    "the repository, that nothing more of it is done; run it again."
)


@dataclass(frozen=True, slots=True)
class Rhythm:
    """Seconds between two writes of a beacon, and the age at which its owner counts as dead."""

    interval_seconds: float = 60.0
    limit_seconds: float = 1800.0

    @property
    def own_limit_seconds(self) -> float:
        """The silence after which an owner counts himself as dead."""
        return self.limit_seconds * 2 / 3


class Board:
    """The beacons of a bucket. `remove` and `drop` take away an object, and a version of one."""

    def __init__(
        self,
        objects: S3Objects,
        where: str,
        patience: Patience,
        rhythm: Rhythm,
        remove: Callable[[str], None],
        drop: Callable[[str, str], None],
    ) -> None:
        self.objects = objects
        self.where = where
        self.patience = patience
        self.rhythm = rhythm
        self.remove = remove
        self.drop = drop

    def write(self, name: str, text: bytes, failed: Callable[[], None]) -> str | None:
        """Put over what is there, with patience."""
        try:
            return self.patience.run(lambda: self.objects.write(name, text), failed)
        except S3Fault as fault:
            raise explained(fault, "say that somebody is at work in", self.where) from None

    def alive(self, folder: str, mine: str) -> list[Found]:
        """Beacons of a folder whose owners live; those of the dead are removed.

        `mine` was put a moment ago. RepositoryUnreachableError if the listing does not have it: then
        it may lack others too.
        """
        found = self._listed(folder, mine)
        now = found[mine].modified_at
        limit = timedelta(seconds=self.rhythm.limit_seconds)
        living = []
        for each in found.values():
            if now - each.modified_at > limit:
                self.remove(each.name)
            elif each.name != mine and not each.name.endswith(_CLOCK):
                living.append(each)
        return living

    def _listed(self, folder: str, mine: str) -> dict[str, Found]:
        def listed() -> dict[str, Found]:
            found = {each.name: each for each in self.objects.list(folder)}
            if mine not in found:
                raise _StaleListing
            return found

        try:
            return self.patience.run(listed)
        except _StaleListing:
            raise RepositoryUnreachableError(
                f"{self.where} does not list what was written to it a moment ago, so it is not known "
                "who is at work there; use a server whose listings are up to date."
            ) from None
        except S3Fault as fault:
            raise explained(fault, "learn who is at work in", self.where) from None


class _StaleListing(S3Fault):
    """A listing lacks what was put before it."""

    def __init__(self) -> None:
        super().__init__(None, "")


class Beacon:
    """An object that is kept fresh by a thread until `end`; that of a process that was killed grows old."""

    def __init__(self, board: Board, folder: str, text: bytes) -> None:
        self._board = board
        self._folder = folder
        self._text = text
        self._name = secrets.token_hex(16)
        self._version: str | None = None
        self._since = _clock()
        self._doubtful = False
        self._lost = False
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._put(text)
        threading.Thread(
            target=_beat,
            args=(weakref.ref(self), self._stop, board.rhythm.interval_seconds),
            name="atoll-beacon",
            daemon=True,
        ).start()

    @property
    def name(self) -> str:
        """32 hex digits. It may change in `say`."""
        return self._name

    @property
    def object(self) -> str:
        """The object's name."""
        return self._folder + self._name

    def say(self, text: bytes) -> None:
        """Have others read this from now on."""
        with self._lock:
            if self._stop.is_set():
                raise RunConflictError(_ENDED)
            self.confirm()
            if self._doubtful:
                self._move(text)
            else:
                self._put(text)
            self._text = text
            self.check()

    def check(self) -> None:
        """RunConflictError if others may have taken the owner for dead; asks nobody."""
        if self._lost or _clock() - self._since > self._board.rhythm.own_limit_seconds:
            self._lost = True
        if self._lost or self._stop.is_set():
            raise RunConflictError(_ENDED)

    def confirm(self) -> None:
        """RunConflictError if others have taken the owner for dead."""
        with self._lock:
            self.check()
            try:
                self._board.patience.run(lambda: self._board.objects.size(self.object))
            except S3Fault as fault:
                if not fault.absent:
                    raise explained(fault, "look for oneself in", self._board.where) from None
                self._lost = True
            self.check()

    def beat(self) -> bool:
        """Write the object again, once; whether that was done."""
        with self._lock:
            if self._stop.is_set():
                return True
            with suppress(RunConflictError):
                self.check()
                try:
                    self._place(lambda: self._board.objects.write(self.object, self._text))
                except S3Fault:
                    self._doubtful = True
                    return False
            return True

    def end(self) -> None:
        """Stop, and remove the object. Twice is harmless."""
        with self._lock:
            if self._stop.is_set():
                return
            self._stop.set()
            self._board.remove(self.object)

    def __del__(self) -> None:
        # Without `end` the object stays and grows old, like that of a process that was killed.
        self._stop.set()

    def _put(self, text: bytes) -> None:
        self._place(lambda: self._board.write(self.object, text, self._doubt))

    def _move(self, text: bytes) -> None:
        """Go on under another name: an old text whose answer was lost may yet come in under this one."""
        before, version = self.object, self._version
        self._name, self._version, self._doubtful = secrets.token_hex(16), None, False
        try:
            self._put(text)
        except BaseException:
            self._name, self._version, self._doubtful = before[len(self._folder) :], version, True
            raise
        self._board.remove(before)

    def _doubt(self) -> None:
        self._doubtful = True

    def _place(self, write: Callable[[], str | None]) -> None:
        """Write, and note that the object is as young as the beginning of that.

        Between the write before and the end of this one its age was never more than the time in
        between. Was that too long, then others may have removed it before this brought it back.
        """
        began = _clock()
        version = write()
        self.check()
        self._since = began
        old, self._version = self._version, version
        if old is not None:
            with suppress(RepositoryUnreachableError):  # left for who collects leftovers
                self._board.drop(self.object, old)


def _beat(owner: "weakref.ref[Beacon]", stop: threading.Event, interval: float) -> None:
    pause = interval
    while not stop.wait(pause):
        beacon = owner()
        if beacon is None:
            return
        pause = interval if beacon.beat() else interval / 6
        del beacon


def living_sessions(board: Board) -> Sequence[SessionSeen]:
    """The sessions that go on, with what they say; the others are ended."""
    mine = f"{SESSIONS}{secrets.token_hex(16)}{_CLOCK}"
    board.write(mine, b"", lambda: None)
    try:
        while (seen := _read(board, board.alive(SESSIONS, mine))) is None:
            pass
        return seen
    finally:
        board.remove(mine)


def _read(board: Board, living: Sequence[Found]) -> list[SessionSeen] | None:
    """What they say; None if one is gone, which may go on under a name that was not listed yet."""
    seen = []
    for each in living:
        try:
            said = board.patience.run(partial(board.objects.get, each.name))
        except S3Fault as fault:
            if fault.absent:
                return None
            raise explained(fault, f"read {each.name} of", board.where) from None
        seen.append(SessionSeen(each.name.removeprefix(SESSIONS), said))
    return seen


def claim(board: Board) -> Beacon:
    """Be the only one who tidies; RunConflictError at once if another is.

    Everybody puts a claim of his own before he looks for others', so of two at once at least one sees
    the other, and gives way. That needs no condition that the server would have to check.
    """
    mine = Beacon(board, MAINTENANCE, b"")
    try:
        others = board.alive(MAINTENANCE, mine.object)
    except BaseException:
        mine.end()
        raise
    if not others:
        return mine
    mine.end()
    raise RunConflictError(
        f"The repository {board.where} is being tidied by another; run again when that is done "
        f"(or {board.rhythm.limit_seconds / 60:g} minutes after it was killed)."
    )


def _clock() -> float:
    """Seconds, counted while the machine sleeps too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
