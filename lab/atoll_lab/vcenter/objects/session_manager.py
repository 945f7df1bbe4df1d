"""The SessionManager: login and logout."""

from datetime import UTC, datetime
from typing import Any

from pyVmomi import vim, vmodl

from atoll_lab.vcenter.objects.base import Call, Managed, answers, exposes
from atoll_lab.vcenter.sessions import Session


class SessionManager(Managed):
    """Checks the password and opens sessions."""

    kind = vim.SessionManager

    @answers("Login")
    def login(self, call: Call, userName: str, password: str, locale: str = "en") -> Any:
        """Open a session; InvalidLogin."""
        if call.session.user is not None:
            raise vim.fault.InvalidLogin(msg="This session is already logged in")
        if not self.site.sessions.login(call.session, userName, password):
            raise vim.fault.InvalidLogin(
                msg="Cannot complete login due to an incorrect user name or password."
            )
        return user_session(call.session)

    @answers("Logout")
    def logout(self, call: Call) -> None:
        """Close the session with its views, collectors and filters."""
        self.site.sessions.end(call.session)
        self.site.registry.end_session(call.session.key)

    @answers("TerminateSession")
    def terminate(self, call: Call, sessionId: list[str]) -> None:
        """Close other sessions; InvalidArgument for the caller's own, NotFound for one that is none."""
        if call.session.key in sessionId:
            raise vmodl.fault.InvalidArgument(
                msg="A session cannot terminate itself", invalidProperty="sessionId"
            )
        for key in sessionId:
            other = self.site.sessions.find(key)
            if other is None:
                raise vim.fault.NotFound(msg=f"There is no session {key}")
            self.site.sessions.end(other)
            self.site.registry.end_session(key)

    @exposes("sessionList")
    def session_list(self) -> list[Any]:
        """Everybody who is logged in."""
        return [user_session(each) for each in self.site.sessions.all()]

    def current_session(self, call: Call) -> Any:
        """The caller's own session; the one property that depends on who asks."""
        return user_session(call.session) if call.session.user is not None else None

    @answers("SessionIsActive")
    def is_active(self, call: Call, sessionID: str, userName: str) -> bool:
        """Whether a session lives."""
        return self.site.sessions.find(sessionID) is not None


def user_session(session: Session) -> Any:
    """A session as vSphere tells it."""
    return vim.UserSession(
        key=session.key,
        userName=session.user,
        fullName=session.user,
        loginTime=datetime.fromtimestamp(session.login_at, UTC),
        lastActiveTime=datetime.fromtimestamp(session.active_at, UTC),
        locale="en",
        messageLocale="en",
        extensionSession=False,
        ipAddress="127.0.0.1",
        userAgent="",
        callCount=0,
    )
