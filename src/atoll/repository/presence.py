"""What a process that uses the repository tells others, and what a prune must know of it.

A prune removes nothing that a process at work could still rely on. For that each process tells in its
session whether it writes and which marks it saw when it began (a writer does not deduplicate against
packs that were marked by then), or which images it reads, so that they stay although their restore
point may be forgotten meanwhile.
"""

import json
import os
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from atoll.model.errors import RepositoryUnreachableError
from atoll.repository.keys import MasterKey
from atoll.repository.marks import read_marks
from atoll.repository.store import ObjectStore, SessionSeen, StoreSession


class Presence:
    """This process in the repository, from now to `end`. Not thread-safe."""

    def __init__(self, store: ObjectStore, master: MasterKey, *, writes: bool) -> None:
        self._told = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": int(time.time()),
            "writes": writes,
        }
        self._seen: tuple[str, ...] = ()
        self._roots: frozenset[str] = frozenset()
        self.marked: frozenset[str] = frozenset()
        """Packs that may go at any time and that nothing new may rely on."""
        self._session: StoreSession = store.join(self._text())
        try:
            if writes:
                # Only now: a mark put after this look is one that a prune knows we did not see.
                marks = read_marks(store, master)
                self.marked = frozenset[str]().union(*marks.values())
                self._seen = tuple(sorted(marks))
                self._session.say(self._text())
        except BaseException:
            self._session.end()
            raise

    def keep(self, roots: Iterable[str]) -> None:
        """Have what these images or blobs (hex) need stay. Then look whether it is there still."""
        wanted = self._roots | frozenset(roots)
        if wanted != self._roots:
            told, self._roots = self._roots, wanted
            try:
                self._session.say(self._text())
            except BaseException:
                self._roots = told
                raise

    def let_go(self, root: str) -> None:
        """What this image needs may go; where that cannot be told it stays until `end`."""
        self._roots -= {root}
        with suppress(RepositoryUnreachableError):
            self._session.say(self._text())

    def confirm(self) -> None:
        """RunConflictError if others took this process for dead, so that nothing is sure any more."""
        self._session.confirm()

    def end(self) -> None:
        """Leave. Twice is harmless."""
        self._session.end()

    def _text(self) -> bytes:
        told = {**self._told, "seen": self._seen, "roots": sorted(self._roots)}
        return json.dumps(told, sort_keys=True).encode()


def keep_packs(store: ObjectStore) -> StoreSession:
    """Have no prune remove a pack that is there now, until the session ends; needs no key.

    Those are kept too that a prune marked before and has not begun to remove.
    """
    told = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": int(time.time()),
        "writes": True,
        "seen": [],
        "roots": [],
    }
    return store.join(json.dumps(told, sort_keys=True).encode())


@dataclass(frozen=True, slots=True)
class Present:
    """Another process as it presents itself; `what` is for people."""

    what: str
    writes: bool
    seen: frozenset[str]
    roots: frozenset[str]

    def may_rely_on(self, mark: str) -> bool:
        """Whether it may have deduplicated against a pack of this mark."""
        return self.writes and mark not in self.seen


def present(store: ObjectStore) -> list[Present]:
    """Everybody at work. One whose words cannot be read counts as a writer that saw no mark."""
    return [_read(session) for session in store.sessions()]


def _read(session: SessionSeen) -> Present:
    try:
        told = json.loads(session.said)
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(told["since"]))
        doing = "writes" if told["writes"] else "reads"
        return Present(
            f"process {told['pid']} on {told['host']}, which {doing} since {since}",
            bool(told["writes"]),
            frozenset(told["seen"]),
            frozenset(told["roots"]),
        )
    except (ValueError, KeyError, TypeError):
        return Present(f"session {session.name}", True, frozenset(), frozenset())
