"""What every application module owes the agent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from atoll_agent.clock import Deadline
from atoll_agent.errors import ConfigError


@dataclass(frozen=True)
class ApplicationConfig:
    """One application by hand, or what to add to a discovered one of the same kind and name.

    `options` are the entry's other keys, which its module explains (docs/operations/agent.md).
    """

    kind: str
    name: str
    options: Mapping[str, str | int]

    def text(self, key: str) -> str | None:
        """The option, None when it is not given."""
        value = self.options.get(key)
        return None if value is None else str(value)

    def number(self, key: str, default: int) -> int:
        """The option; ConfigError when it is no number."""
        value = self.options.get(key, default)
        if not isinstance(value, int):
            raise ConfigError(f"applications: {key} of {self.name} must be a number.")
        return value


@dataclass(frozen=True)
class HeldApplication:
    """How an application was held; the same fields go over the wire."""

    kind: str
    name: str
    held: bool
    position: str
    witness: str | None
    flush_seconds: float
    detail: str


@dataclass(frozen=True)
class Testimony:
    """What an application says of itself after a restore; None means that it could not be learned.

    `wal_replayed_bytes` is how much log the last start replayed; `repair_ran`
    whether it had to mend data beyond that.
    """

    kind: str
    name: str
    answering: bool
    witness: str | None
    wal_replayed_bytes: int | None
    repair_ran: bool | None
    position: str
    detail: str


class Application(Protocol):
    """One server found in the guest. Calls come one at a time; `close` may follow any of them."""

    @property
    def kind(self) -> str:
        """The module's name, e.g. `postgresql`."""
        ...

    @property
    def name(self) -> str:
        """Which server of that kind."""
        ...

    def remark(self, deadline: Deadline) -> str:
        """One line for `status`: how it will be held, or what is missing for that.

        Asks the server, changes nothing and does not raise.
        """
        ...

    def recover(self, deadline: Deadline) -> None:
        """Undo what an agent that was killed left changed in it. Raises ApplicationError."""
        ...

    def prepare(self, deadline: Deadline) -> None:
        """Flush while everything serves. Raises ApplicationError."""
        ...

    def open(self, deadline: Deadline) -> list[int]:
        """Open the sessions that will hold it; returns their process ids. Raises ApplicationError.

        They may stay open for minutes, so they hold no lock and no transaction.
        """
        ...

    def flush_again(self, deadline: Deadline) -> None:
        """Flush what came since `prepare`, on the opened sessions. Raises ApplicationError."""
        ...

    def still_ready(self, deadline: Deadline) -> bool:
        """Whether the opened sessions answer and can hold all there is to hold now.

        Holds nothing and does not raise.
        """
        ...

    def hold(self, deadline: Deadline) -> HeldApplication:
        """Hold writers, flush, and read position and witness.

        Does not raise: what could not be held is said in the result, and then
        no lock is left.
        """
        ...

    def still_held(self, deadline: Deadline) -> str:
        """Empty while the hold is unbroken, else what broke it."""
        ...

    def close(self) -> None:
        """Let go and end all sessions. Repeatable."""
        ...

    def testify(self, deadline: Deadline) -> Testimony:
        """Look, and change nothing. Does not raise."""
        ...


@runtime_checkable
class KeepsRecord(Protocol):
    """What an application has beside, whose server keeps a record of its backups."""

    def note_snapshot(self, taken: bool) -> None:
        """Hear, before `still_held`, whether a snapshot was taken while it was held."""
        ...
