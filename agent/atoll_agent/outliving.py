"""Applications whose hold outlives whoever took it, so that a dead-man's process takes it."""

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atoll_agent.application import HeldApplication
from atoll_agent.clock import Deadline, boottime
from atoll_agent.errors import ApplicationError
from atoll_agent.lifeline import RECORDS, Lifeline


class OutlivingApplication(abc.ABC):
    """The agent's end of that process; the other is the module's `deadman.Holder`.

    The holder answers `hold` with `{"position", "witness", "remarks"}`, and
    `ask` with `{"question": "ready"}` before the hold and `{"question": "held"}`
    during it by raising when it is not so.
    """

    def __init__(self, kind: str, name: str, records: Path = RECORDS) -> None:
        """`records` is where it is written down what may be held."""
        self._kind = kind
        self._name = name
        self._records = records
        self._line: Lifeline | None = None

    @property
    def kind(self) -> str:
        return self._kind

    @property
    def name(self) -> str:
        return self._name

    @abc.abstractmethod
    def _arguments(self) -> Mapping[str, Any]:
        """What the module's `make_holder` is given. Raises ApplicationError."""

    def _order(self) -> Mapping[str, Any]:
        """What the holder is told when it is to hold."""
        return {}

    def recover(self, deadline: Deadline) -> None:
        """Release what an agent and its dead-man's process, killed together, left held."""
        self._lifeline().recover(deadline)

    def open(self, deadline: Deadline) -> list[int]:
        self.close()
        self._line = self._lifeline()
        return self._line.open(deadline)

    def still_ready(self, deadline: Deadline) -> bool:
        try:
            self._ask({"question": "ready"}, deadline)
        except ApplicationError:
            return False
        return True

    def hold(self, deadline: Deadline) -> HeldApplication:
        started = boottime()
        refusal = ""
        answer: Mapping[str, Any] = {"position": "", "witness": None, "remarks": []}
        line = self._line or self._lifeline()
        try:
            answer = line.hold(self._order(), deadline)
        except ApplicationError as error:
            # By now it is being released, and the file systems wait for their turn.
            refusal = str(error)
            self.close()
        return HeldApplication(
            kind=self.kind,
            name=self.name,
            held=not refusal,
            position=answer["position"],
            witness=answer["witness"],
            flush_seconds=boottime() - started,
            detail=refusal or "; ".join(answer["remarks"]),
        )

    def still_held(self, deadline: Deadline) -> str:
        if self._line is None:
            return ""
        try:
            self._ask({"question": "held"}, deadline)
        except ApplicationError as error:
            return f"{self.kind} {self.name}: {error}"
        return ""

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    def _ask(self, arguments: Mapping[str, Any], deadline: Deadline) -> Mapping[str, Any]:
        if self._line is None:
            raise ApplicationError("it was not opened")
        return self._line.ask(arguments, deadline)

    def _lifeline(self) -> Lifeline:
        return Lifeline(self.kind, self.name, self._arguments(), self._records)
