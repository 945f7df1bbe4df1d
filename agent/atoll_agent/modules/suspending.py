"""What servers have in common whose hold is a state of the server and not of a connection.

Oracle's backup mode, Db2's suspended writes, Informix' blocked server, a
snapshot HANA has prepared: they outlive whoever asked for them. Each is a
`Product`; the dead-man's process runs it (`ProductHolder`), so that it is
resumed whatever becomes of the agent, and `SuspendedApplication` is the
agent's end of that process.
"""

import abc
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from atoll_agent.application import Testimony
from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError
from atoll_agent.lifeline import RECORDS
from atoll_agent.outliving import OutlivingApplication

# Of the time to hold, what suspending may use: the rest is for resuming when it fails.
_SUSPEND_SHARE = 0.7
_WITNESS_SHARE = 0.5
_RESUME_SECONDS = 30.0
_MAX_WITNESS = 4096
_QUERY = re.compile(r"(?:select|with)\s[^\n\r]*\Z", re.IGNORECASE)


class RefusedError(ApplicationError):
    """The server is not as it must be, and nothing in it was changed: there is nothing to resume."""


@dataclass(frozen=True)
class Suspension:
    """A server that is held: where its log stood, and what its admin should know."""

    position: str
    remark: str = ""


@dataclass(frozen=True)
class Findings:
    """What a server says of itself after a restore; None where it cannot be learned."""

    position: str
    witness: str | None = None
    replayed_bytes: int | None = None
    repaired: bool | None = None
    remark: str = ""


class Product(abc.ABC):
    """One server. Calls come one at a time and raise ApplicationError; each obeys its deadline.

    The dead-man's process calls `connect`, then `flush`, `check`, `suspend`,
    `ask_witness` and `conclude`, and `resume` whatever happened. The agent
    calls `flush` before any of it, and `look` in a restored guest, each with
    no `connect` before it.
    """

    kind: ClassVar[str]
    how: ClassVar[str]
    """How it is held, in a few words for its admin."""
    early: ClassVar[bool] = False
    """Its hold stops nobody and may take long, so it is taken while the guest is armed."""

    @abc.abstractmethod
    def connect(self, deadline: Deadline) -> None:
        """Open what holding and resuming need, and refuse what can be seen to be hopeless."""

    @abc.abstractmethod
    def flush(self, deadline: Deadline) -> None:
        """Write out what suspending would have to, while everything serves."""

    @abc.abstractmethod
    def check(self, deadline: Deadline) -> None:
        """Raise unless what `connect` opened answers and can hold all there is to hold now."""

    @abc.abstractmethod
    def suspend(self, deadline: Deadline) -> Suspension:
        """Hold the server. RefusedError says that nothing was changed; after any other, `resume`."""

    def ask_witness(self, deadline: Deadline) -> str | None:
        """The answer to the witness; None without one. Must not cost the hold."""
        return None

    @abc.abstractmethod
    def conclude(self, taken: bool | None, deadline: Deadline) -> str:
        """Asked once, right before `resume`: empty while the hold is unbroken, else what broke it.

        May resume itself where that is what shows it. `taken` is whether a
        snapshot was taken meanwhile, as far as the director has said so: for
        servers that keep a record of their backups.
        """

    @abc.abstractmethod
    def resume(self, deadline: Deadline) -> None:
        """Let go; succeeds when nothing is held any more. Repeatable, without `connect` too."""

    @abc.abstractmethod
    def look(self, deadline: Deadline) -> Findings:
        """Ask a server that was restored and started; changes nothing."""

    @abc.abstractmethod
    def disconnect(self) -> None:
        """Close what is open. Repeatable; does not raise."""


class ProductHolder:
    """The dead-man's side: see `deadman.Holder`."""

    def __init__(self, product: Product) -> None:
        self._product = product
        self._suspension: Suspension | None = None
        self._untouched = False

    def open(self, deadline: Deadline) -> Mapping[str, Any]:
        self._product.connect(deadline)
        if not self._product.early:
            return {}
        try:
            self._suspension = self._product.suspend(deadline)
        except RefusedError:
            raise
        except ApplicationError:
            # Nobody else does: as long as this call has not succeeded, nothing counts as held.
            self._product.resume(Deadline(_RESUME_SECONDS))
            raise
        return {"holds": True}

    def hold(self, arguments: Mapping[str, Any], deadline: Deadline) -> Mapping[str, Any]:
        suspension = self._suspension
        if suspension is None:
            try:
                limit = deadline.within(deadline.remaining * _SUSPEND_SHARE)
                suspension = self._product.suspend(limit)
            except RefusedError:
                self._untouched = True
                raise
        witness, remarks = None, [suspension.remark]
        try:
            limit = deadline.within(deadline.remaining * _WITNESS_SHARE)
            witness = self._product.ask_witness(limit)
        except ApplicationError as error:
            remarks.append(f"the witness did not answer: {error}")
        return {
            "position": suspension.position,
            "witness": None if witness is None else witness[:_MAX_WITNESS],
            "remarks": [each for each in remarks if each],
        }

    def ask(self, arguments: Mapping[str, Any], deadline: Deadline) -> Mapping[str, Any]:
        question = arguments["question"]
        if question == "flush":
            self._product.flush(deadline)
        elif question == "ready":
            self._product.check(deadline)
        else:
            return {"broken": self._product.conclude(arguments["taken"], deadline)}
        return {}

    def release(self, deadline: Deadline) -> None:
        if not self._untouched:
            self._product.resume(deadline)
        self._product.disconnect()


class SuspendedApplication(OutlivingApplication):
    """The agent's side of a product: see `application.Application`."""

    def __init__(
        self, name: str, product: Product, arguments: Mapping[str, Any], records: Path = RECORDS
    ) -> None:
        super().__init__(product.kind, name, records)
        self._product = product
        self._given = arguments
        self._taken: bool | None = None

    def remark(self, deadline: Deadline) -> str:
        try:
            self._product.connect(deadline)
            self._product.check(deadline)
        except ApplicationError as error:
            return f"cannot be held: {error}"
        finally:
            self._product.disconnect()
        return f"held by {self._product.how}; not run against the product"

    def prepare(self, deadline: Deadline) -> None:
        """Flush on connections of its own."""
        try:
            self._product.flush(deadline)
        finally:
            self._product.disconnect()

    def open(self, deadline: Deadline) -> list[int]:
        self._taken = None
        return super().open(deadline)

    def flush_again(self, deadline: Deadline) -> None:
        self._ask({"question": "flush"}, deadline)

    def note_snapshot(self, taken: bool) -> None:
        """Hear from the director whether a snapshot was taken, before `still_held` is asked."""
        self._taken = taken

    def still_held(self, deadline: Deadline) -> str:
        if self._line is None:
            return ""
        try:
            answer = self._ask({"question": "conclude", "taken": self._taken}, deadline)
        except ApplicationError as error:
            return f"{self.kind} {self.name} is not known to have been held throughout: {error}"
        broken = str(answer["broken"])
        return f"{self.kind} {self.name}: {broken}" if broken else ""

    def testify(self, deadline: Deadline) -> Testimony:
        answering, found, detail = False, Findings(""), ""
        try:
            found = self._product.look(deadline)
            answering, detail = True, found.remark
        except ApplicationError as error:
            detail = str(error)
        finally:
            self._product.disconnect()
        return Testimony(
            kind=self.kind,
            name=self.name,
            answering=answering,
            witness=None if found.witness is None else found.witness[:_MAX_WITNESS],
            wal_replayed_bytes=found.replayed_bytes,
            repair_ran=found.repaired,
            position=found.position,
            detail=detail,
        )

    def _arguments(self) -> Mapping[str, Any]:
        return self._given


def usable_witness(witness: str) -> str:
    """The witness; ApplicationError unless it is a query on one line.

    These clients have commands of their own, some of which run programs.
    """
    if not _QUERY.match(witness):
        raise ApplicationError("it must be one line that begins with SELECT or WITH")
    return witness
