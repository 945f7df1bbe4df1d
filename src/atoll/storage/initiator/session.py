"""One iSCSI session: logged in, fed with commands, and let go, by one thread at a time."""

import ctypes
import select
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from atoll.storage.backend import Chap
from atoll.storage.initiator.errors import (
    ChapRefusedError,
    InitiatorRefusedError,
    IscsiError,
    TargetUnprovenError,
    TargetUnreachableError,
)
from atoll.storage.initiator.library import (
    COMMAND_CALLBACK,
    GOOD,
    NORMAL_SESSION,
    OWN_STATUS,
    UNDERFLOW,
    DiscoveryAddress,
    Task,
    library,
)

_TICK_SECONDS = 1.0
"""How often libiscsi looks for commands that took too long."""

_SYN_RETRIES = 3
"""A portal that swallows packets is given up after 15 s, and not the kernel's two minutes."""

_NOT_LET_IN = ("Target not found", "Target removed", "Authorization failure")
_UNPROVEN = ("CHAP_R", "CHAP_N", "CHAP targetname")
_DISCOVERY = "discovery"


@dataclass(frozen=True, slots=True)
class Login:
    """Who logs in where. `target` is None for discovery; `portal` is `address:port`."""

    portal: str
    initiator: str
    target: str | None = None
    chap: Chap | None = None
    timeout_seconds: int = 60

    def __str__(self) -> str:
        return f"{self.target or _DISCOVERY} at {self.portal}"


@dataclass(frozen=True, slots=True)
class Answer:
    """How a SCSI command ended; `status` is SCSI's, `sense` is (key, code and qualifier).

    `missing_bytes` is by how much less was transferred than was asked for.
    """

    status: int
    sense: tuple[int, int]
    data: bytes
    missing_bytes: int


@dataclass(slots=True)
class Pending:
    """Something libiscsi is at; `kept` is memory it uses until then.

    When it is a SCSI command, `data` in the end is its task, which is to be freed.
    """

    kept: object = None
    command: bool = False
    status: int | None = None
    data: int | None = None
    digest: Callable[[int], Any] | None = None
    result: Any = field(default=None)


_pending: dict[int, Pending] = {}
_numbers = count(1)


def _end(_context: int, status: int, data: int | None, number: int) -> None:
    """libiscsi's word that something ended; what nobody waits for any more is passed over."""
    waiting = _pending.get(number)
    if waiting is not None and waiting.status is None:
        waiting.data = data
        if waiting.digest is not None and data and status == GOOD:
            waiting.result = waiting.digest(data)  # what it points to is gone after this
        waiting.status = status


_ended = COMMAND_CALLBACK(_end)


class Session:
    """A session with a target, or for discovery. Lost ones stay lost; `end` is due for any."""

    def __init__(self, login: Login, kind: int = NORMAL_SESSION) -> None:
        lib = library()
        self.login = login
        self.lost = False
        self._mine: set[int] = set()
        self._poll = select.poll()
        self._context: int | None = lib.iscsi_create_context(login.initiator.encode())
        if not self._context:
            raise IscsiError(f"libiscsi has no memory for a session of {login.initiator}.")
        lib.iscsi_set_session_type(self._context, kind)
        if login.target is not None:
            lib.iscsi_set_targetname(self._context, login.target.encode())
        if login.chap is not None:
            _set_secrets(self._context, login.chap)
        lib.iscsi_set_noautoreconnect(self._context, 1)
        lib.iscsi_set_timeout(self._context, login.timeout_seconds)
        lib.iscsi_set_tcp_syncnt(self._context, _SYN_RETRIES)

    def open(self, lun: int) -> None:
        """Log in and wait until a LUN is ready. The errors of IscsiLun's opening."""
        lib = library()
        self._finish_login(
            lambda number: lib.iscsi_full_connect_async(
                self._context, self.login.portal.encode(), lun, _ended, number
            )
        )

    def open_without_lun(self) -> None:
        """Log in, for discovery or to ask which LUNs there are."""
        lib = library()
        self._finish_login(
            lambda number: lib.iscsi_connect_async(
                self._context, self.login.portal.encode(), _ended, number
            )
        )
        self._finish_login(lambda number: lib.iscsi_login_async(self._context, _ended, number))

    def discover(self) -> list[tuple[str, tuple[str, ...]]]:
        """Targets and their portals, as a discovery session is told."""
        lib = library()
        waiting = Pending(digest=_read_discovery)
        self._call(waiting, lambda number: lib.iscsi_discovery_async(self._context, _ended, number))
        if waiting.status != GOOD:
            raise self.was_lost("discovery")
        return list(waiting.result or ())

    def start(self, issue: Callable[[int, Any, int], Any], kept: object = None) -> int:
        """Queue a SCSI command, `issue(context, callback, number)`; returns its number."""
        number = self._register(Pending(kept, command=True))
        if not issue(self._context or 0, _ended, number):
            self._forget(number)
            self.lost = True
            raise self.was_lost("command")
        return number

    def finish(self, number: int) -> Answer:
        """Wait for a command to end; TargetUnreachableError when the session was lost before."""
        waiting = _pending[number]
        self._serve_until(waiting)
        if waiting.data is None:
            raise self.was_lost("command")
        self._forget(number)
        task = ctypes.cast(waiting.data, ctypes.POINTER(Task))
        try:
            answer = task.contents
            if answer.status >= OWN_STATUS:
                self.lost = True
                raise self.was_lost("command")
            size = answer.datain.size
            return Answer(
                answer.status,
                (answer.sense.key, answer.sense.ascq),
                ctypes.string_at(answer.datain.data, size) if size > 0 else b"",
                answer.residual if answer.residual_status == UNDERFLOW else 0,
            )
        finally:
            library().scsi_free_scsi_task(task)

    def end(self) -> None:
        """Log out if there is anybody to tell, and let everything go. Repeatable."""
        if self._context is None:
            return
        lib = library()
        if not self.lost and not self._mine:
            self._call(
                Pending(), lambda number: lib.iscsi_logout_async(self._context, _ended, number)
            )
        context, self._context = self._context, None
        lib.iscsi_destroy_context(context)
        # libiscsi may have used their memory until now.
        for number in list(self._mine):
            left = _pending[number]
            if left.command and left.data:
                lib.scsi_free_scsi_task(ctypes.cast(left.data, ctypes.POINTER(Task)))
            self._forget(number)

    def was_lost(self, what: str) -> TargetUnreachableError:
        """The error for a session that was lost at something."""
        return TargetUnreachableError(
            f"The session with {self.login} was lost at a {what}: {self.said()}; open it again "
            "once it is served."
        )

    def said(self) -> str:
        """libiscsi's last words."""
        said: bytes = library().iscsi_get_error(self._context) or b""
        return said.decode(errors="replace").strip().rstrip(".") or "no reason given"

    def _finish_login(self, begin: Callable[[int], int]) -> None:
        waiting = Pending()
        self._call(waiting, begin)
        if waiting.status != GOOD:
            self.lost = True
            raise _login_error(self.login, self.said())

    def _call(self, waiting: Pending, begin: Callable[[int], int]) -> None:
        number = self._register(waiting)
        try:
            if begin(number) == 0:
                self._serve_until(waiting)
            else:
                self.lost = True
        finally:
            if not self.lost:
                self._forget(number)

    def _serve_until(self, waiting: Pending) -> None:
        """Let libiscsi work until something ended or the session is lost."""
        lib = library()
        while waiting.status is None and not self.lost:
            descriptor = lib.iscsi_get_fd(self._context)
            if descriptor < 0:
                self.lost = True
                return
            self._poll.register(descriptor, lib.iscsi_which_events(self._context))
            happened = self._poll.poll(_TICK_SECONDS * 1000)
            self._poll.unregister(descriptor)
            if lib.iscsi_service(self._context, happened[0][1] if happened else 0) < 0:
                self.lost = True

    def _register(self, waiting: Pending) -> int:
        number = next(_numbers)
        _pending[number] = waiting
        self._mine.add(number)
        return number

    def _forget(self, number: int) -> None:
        self._mine.discard(number)
        _pending.pop(number, None)


def _set_secrets(context: int, chap: Chap) -> None:
    lib = library()
    lib.iscsi_set_initiator_username_pwd(context, chap.user.encode(), chap.secret.encode())
    if chap.mutual_user is not None and chap.mutual_secret is not None:
        lib.iscsi_set_target_username_pwd(
            context, chap.mutual_user.encode(), chap.mutual_secret.encode()
        )


def _read_discovery(data: int) -> list[tuple[str, tuple[str, ...]]]:
    found = []
    address = ctypes.cast(data, ctypes.POINTER(DiscoveryAddress))
    while address:
        portals = []
        place = address.contents.portals
        while place:
            portals.append(place.contents.portal.decode(errors="replace").partition(",")[0])
            place = place.contents.next
        found.append((address.contents.target_name.decode(errors="replace"), tuple(portals)))
        address = address.contents.next
    return found


def _login_error(login: Login, said: str) -> IscsiError:
    if "Authentication failure" in said:
        if login.chap is None:
            return ChapRefusedError(
                f"{login} asks {login.initiator} for a CHAP secret; give the initiator the user "
                "and secret the storage has for it."
            )
        return ChapRefusedError(
            f"{login} does not accept CHAP user {login.chap.user} with the secret that "
            f"{login.initiator} gave; correct the secret on either side."
        )
    if any(reason in said for reason in _UNPROVEN):
        return TargetUnprovenError(
            f"{login} did not prove itself to {login.initiator} by mutual CHAP; correct the "
            "mutual user and secret on either side, or find out who answers there."
        )
    # A target hides from those it does not know, so absent and refused look alike from here.
    if any(reason in said for reason in _NOT_LET_IN):
        return InitiatorRefusedError(
            f"{login.portal} does not let {login.initiator} into {login.target or _DISCOVERY}; "
            "present the LUN to this initiator."
        )
    if "LOGICAL_UNIT_NOT_SUPPORTED" in said:
        return InitiatorRefusedError(
            f"{login} shows {login.initiator} no such LUN; present it to this initiator."
        )
    return TargetUnreachableError(
        f"{login} cannot be reached as {login.initiator}: {said}; check that the storage serves it."
    )
