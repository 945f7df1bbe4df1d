"""What products have in common that are asked through a client of theirs that stays open."""

import abc

from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError
from atoll_agent.modules.suspending import Product
from atoll_agent.session import Session


class TwoSessions(Product):
    """`control` holds and `other` is asked, so that a question never waits behind the hold.

    `connect` opens both. `flush` and `look`, which come without it, begin with `lone`.
    """

    def __init__(self, witness: str | None) -> None:
        """`witness` None: there is none."""
        self._witness = witness
        self._control: Session | None = None
        self._other: Session | None = None

    @abc.abstractmethod
    def _client(self) -> Session:
        """Start the product's client."""

    @abc.abstractmethod
    def _greeting(self) -> str:
        """What a client is told first."""

    @abc.abstractmethod
    def _answer(self, witness: str, session: Session, deadline: Deadline) -> str:
        """The witness's answer in a session."""

    @property
    def control(self) -> Session:
        """The session that holds."""
        assert self._control is not None
        return self._control

    @property
    def other(self) -> Session:
        """The session that is asked."""
        assert self._other is not None
        return self._other

    def connect(self, deadline: Deadline) -> None:
        self._control = self._session(deadline)
        self._other = self._session(deadline)

    def lone(self, deadline: Deadline) -> Session:
        """The session that holds, opened when it is not."""
        if self._control is None:
            self._control = self._session(deadline)
        return self._control

    def ask_witness(self, deadline: Deadline) -> str | None:
        if self._witness is None or self._other is None:
            return None
        return self._answer(self._witness, self._other, deadline)

    def witness_of(self, session: Session, deadline: Deadline) -> str | None:
        """The witness's answer in a restored guest; None without one."""
        return self._answer(self._witness, session, deadline) if self._witness else None

    def disconnect(self) -> None:
        for session in (self._control, self._other):
            if session is not None:
                session.close()
        self._control = self._other = None

    def _session(self, deadline: Deadline) -> Session:
        session = self._client()
        try:
            session.ask(self._greeting(), deadline)
        except ApplicationError:
            session.close()
            raise
        return session
