"""Following vCenter live: a picture kept current in a thread of its own.

Every answer about VMs is proven current: after the moment of the question
vCenter was asked once more what had changed, and had told all of it before the
answer was given. Where that cannot be had there is no answer, and the caller
reads from vCenter itself: a picture that may be stale proves nothing.
"""

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from pyVmomi import vim

from atoll.model.changes import ChangeKind, Changes
from atoll.model.errors import AtollError, VCenterOperationError
from atoll.model.inventory import Placement
from atoll.vsphere.changelog import ChangeLog
from atoll.vsphere.differences import Difference, differences
from atoll.vsphere.facts import DatastoreFacts, Facts, HostFacts, VmFacts
from atoll.vsphere.feed import Feed, Interrupted
from atoll.vsphere.inventory import Reading, assemble, names_of
from atoll.vsphere.picture import Picture
from atoll.vsphere.placement import placements
from atoll.vsphere.session import Session

_LOG = logging.getLogger(__name__)

_LONGEST_WAIT_SECONDS = 120
_PROOF_SECONDS = 10.0
"""How long a question waits for its proof before the caller had better read by itself."""
_NUDGE_SECONDS = 0.05
"""A cancel that came before the wait it was meant for has no effect: it is sent again."""
_LONGEST_NUDGE_SECONDS = 0.25
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
_REFUSED_PAUSE_SECONDS = 300.0
"""After a refused password: vCenter locks an account after five of them in three minutes."""
_CLOSE_SECONDS = 10.0


class Watch:
    """Follows vCenter from `start` until `close`, over restarts and expired sessions.

    Needs a session that nobody else uses and closes it at the end. Any thread
    may ask. Only reads.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._wait_seconds = max(1, min(_LONGEST_WAIT_SECONDS, int(session.answer_seconds / 2)))
        self._thread = threading.Thread(target=self._run, name="vcenter-watch", daemon=True)
        self._log = ChangeLog()
        # The thread's own: what the feed told, also in the middle of an incomplete answer.
        self._picture = Picture()
        self._discarded: Feed | None = None
        self._first = True
        self._midway = False
        self._ticket = 0
        # Guarded by the condition: what was told completely, and what was asked of it.
        self._changed = threading.Condition()
        self._rows: Mapping[str, Facts] = {}
        self._refused: frozenset[str] = frozenset()
        self._reading: Reading | None = None
        self._feed: Feed | None = None
        self._waiting = False
        self._live = False
        self._failure: AtollError | None = None
        self._asked = 0
        self._proven = 0
        self._closing = False

    def start(self) -> None:
        """Return when the first picture is there.

        Raises what reading the inventory raises when it cannot be had; then
        nothing goes on.
        """
        self._thread.start()
        failure: AtollError | None = None
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._live or self._failure is not None)
                failure = self._failure
        finally:
            if not self._live:
                self.close()
        if failure is not None:
            raise failure

    def close(self) -> None:
        """End following; harmless when repeated."""
        deadline = time.monotonic() + _CLOSE_SECONDS
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._log.close()
        # A vCenter that hangs may keep the thread longer: it ends when its call does.
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._interrupt()
            self._thread.join(_LONGEST_NUDGE_SECONDS)

    def reading(self) -> Reading | None:
        """The inventory as it is now; None when that cannot be proven or not all may be read."""
        if not self._prove():
            return None
        with self._changed:
            if self._refused:
                return None
            if self._reading is None:
                self._reading = assemble(self._rows.values())
            return self._reading

    def placement(self, instance_uuids: Iterable[str]) -> Mapping[str, Placement] | None:
        """Where VMs are now, by instance UUID; None when that cannot be proven.

        VMs that vCenter does not know, or has no contact with, are left out.
        """
        wanted = set(instance_uuids)
        if not self._prove():
            return None
        with self._changed:
            if self._refused:
                return None
            rows = self._rows  # never changed, only replaced
        vms = [row for row in rows.values() if isinstance(row, VmFacts)]
        return placements([vm for vm in vms if vm.instance_uuid in wanted], _names(rows))

    def wait_for_change(self, since: int = 0, seconds: float = 0.0) -> Changes:
        """What changed after change number `since`; waits for it up to `seconds`.

        Returns at once when the watch is closed.
        """
        return self._log.wait(since, seconds)

    @property
    def latest(self) -> int:
        """The number of the last change so far, 0 before the first."""
        return self._log.latest

    def _prove(self) -> bool:
        """Whether the picture now holds all that vCenter knew at the moment of this call."""
        with self._changed:
            self._asked += 1
            mine = self._asked
        deadline = time.monotonic() + _PROOF_SECONDS
        nudge = _NUDGE_SECONDS
        while True:
            self._interrupt()
            with self._changed:
                left = deadline - time.monotonic()
                self._changed.wait_for(
                    lambda: self._proven >= mine or not self._live or self._closing,
                    min(max(left, 0), nudge),
                )
                if self._proven >= mine:
                    return True
                if left <= 0 or not self._live or self._closing:
                    return False
            nudge = min(2 * nudge, _LONGEST_NUDGE_SECONDS)

    def _interrupt(self) -> None:
        """End a wait that goes on, so that vCenter can be asked at once."""
        with self._changed:
            feed = self._feed if self._waiting else None
        if feed is not None:
            feed.interrupt()

    def _run(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._closing:
            try:
                self._session.call("tell what changed", self._step)
            except AtollError as error:
                refused = isinstance(error.__cause__, vim.fault.InvalidLogin)
                self._lose(error, _REFUSED_PAUSE_SECONDS if refused else pause)
            except Exception as error:  # noqa: BLE001 - a watch that ended unseen would be believed
                _LOG.exception("following vCenter failed")
                self._lose(
                    VCenterOperationError(
                        f"Atoll failed to follow vCenter: {error!r}; please report this, "
                        "commands go on without following."
                    ),
                    pause,
                )
            else:
                pause = _FIRST_PAUSE_SECONDS
                continue
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        if self._feed is not None:
            self._feed.close()
        self._session.close()

    def _step(self, content: Any) -> None:
        """Ask once what changed, and take it in.

        The session gives other content after a new login. Views and filters
        ended with the old one, so everything is told anew.
        """
        feed = self._feed
        if feed is None or feed.content is not content:
            if self._discarded is not None and self._discarded.content is content:
                self._discarded.close()
            self._discarded = None
            feed = Feed(content, self._session.page_objects)
            self._picture, self._first, self._midway = Picture(), True, False
        with self._changed:
            self._feed = feed
            if not self._midway:
                # What an incomplete answer began with may have changed before its last part.
                self._ticket = self._asked
            self._waiting = not (
                self._first or self._midway or self._closing or self._proven < self._ticket
            )
            seconds = self._wait_seconds if self._waiting else 0
        try:
            updates = feed.next(seconds)
        except Interrupted:
            self._interrupted()
            return
        finally:
            with self._changed:
                self._waiting = False
        self._picture.apply(updates.objects)
        for kind, morefs in self._picture.unclear().items():
            self._picture.replace(kind, feed.reread(kind, morefs))
        self._midway = not updates.complete
        if updates.complete:
            self._publish()

    def _interrupted(self) -> None:
        with self._changed:
            if self._midway:
                self._discard()  # the rest of an incomplete answer may be lost
            elif self._asked == self._proven and not self._closing:
                # Nobody here asked for it: the session or the server is ending.
                self._changed.wait(_LONGEST_NUDGE_SECONDS)

    def _discard(self) -> None:
        """Begin anew with the next step, which also removes what is left of the feed."""
        self._discarded = self._feed or self._discarded
        self._feed = None

    def _publish(self) -> None:
        """Let the thread's picture answer every question up to its ticket."""
        touched = self._picture.touched()
        rows = self._picture.rows
        with self._changed:
            if self._first:
                touched = frozenset(self._rows.keys() | rows.keys())
            told = self._differences(touched, rows)
            if self._failure is not None:
                told.insert(0, Difference(ChangeKind.VCENTER_BACK, "", ""))
            if touched:
                self._reading = None
                self._rows = dict(rows)
            self._refused = self._picture.refused
            # Whoever has the answer finds in the log what it rests on.
            self._log.add(told)
            self._first, self._live, self._failure = False, True, None
            self._proven = self._ticket
            self._changed.notify_all()

    def _differences(self, touched: Iterable[str], rows: Mapping[str, Facts]) -> list[Difference]:
        if not self._rows:
            return []  # the first picture of all is no news
        changed = [
            (old, new)
            for old, new in ((self._rows.get(moref), rows.get(moref)) for moref in touched)
            if old != new
        ]
        return differences(changed, _names(self._rows), _names(rows)) if changed else []

    def _lose(self, error: AtollError, pause: float) -> None:
        """Nothing can be proven until vCenter was read anew, which is tried after `pause` seconds."""
        with self._changed:
            lost = self._live
            self._discard()
            self._live = False
            self._failure = error
            if lost:
                self._log.add([Difference(ChangeKind.VCENTER_LOST, "", "", after=str(error))])
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closing, pause)


def _names(rows: Mapping[str, Facts]) -> dict[str, str]:
    """Names by moref of hosts and datastores."""
    hosts = {row.moref: row.name for row in rows.values() if isinstance(row, HostFacts)}
    stores = {row.moref: row.name for row in rows.values() if isinstance(row, DatastoreFacts)}
    return names_of(hosts) | names_of(stores)
