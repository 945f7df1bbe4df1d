"""Login sessions: who a cookie is, and the password check."""

import hmac
import secrets
import threading
import time
from dataclasses import dataclass, field

COOKIE = "vmware_soap_session"


@dataclass
class Session:
    """One client. `user` is None until it logged in. Times are seconds since the epoch."""

    key: str
    user: str | None = None
    login_at: float = 0.0
    active_at: float = field(default_factory=time.time)
    cancels: int = 0
    """How often its waits for updates were cancelled."""


class Sessions:
    """The open sessions and the one account there is."""

    def __init__(self, user: str, password: str) -> None:
        self._user = user
        self._password = password
        self._open: dict[str, Session] = {}
        self._lock = threading.Lock()
        self.logins = 0
        """How many logins succeeded, so that tests can count them."""

    def find(self, key: str | None) -> Session | None:
        """The session of a cookie's value."""
        with self._lock:
            session = self._open.get(key or "")
            if session is not None:
                session.active_at = time.time()
            return session

    def all(self) -> list[Session]:
        """Everybody who is logged in."""
        with self._lock:
            return list(self._open.values())

    def begin(self) -> Session:
        """A session nobody logged into yet; it counts for nothing until then."""
        return Session(key=secrets.token_hex(20))

    def login(self, session: Session, user: str, password: str) -> bool:
        """Check the account and open the session; False when refused."""
        right_user = hmac.compare_digest(user.encode(), self._user.encode())
        right_password = hmac.compare_digest(password.encode(), self._password.encode())
        if not (right_user and right_password):
            return False
        with self._lock:
            session.user, session.login_at = user, time.time()
            self._open[session.key] = session
            self.logins += 1
        return True

    def end(self, session: Session) -> None:
        """Log out."""
        with self._lock:
            self._open.pop(session.key, None)
            session.user = None

    def expire_all(self) -> list[Session]:
        """End every session as an idle time-out would; the ones there were."""
        with self._lock:
            ended = list(self._open.values())
            for session in ended:
                session.user = None
            self._open.clear()
            return ended
