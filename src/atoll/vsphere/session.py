"""A login session: opened once, opened again when it expired, its failures in Atoll's words."""

import http.client
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from xml.parsers.expat import ExpatError

from pyVmomi import SoapStubAdapter, VmomiSupport, vim, vmodl

from atoll.model.errors import (
    AuthenticationError,
    VCenterOperationError,
    VCenterUnreachableError,
)
from atoll.vsphere.settings import VCenterSettings
from atoll.vsphere.tls import tls_context

T = TypeVar("T")

_POOLED_SECONDS = 30
"""Idle connections are dropped before vCenter's proxy drops them under a call."""
_MAX_VERSIONS_BYTES = 1 << 20


@dataclass(frozen=True)
class _Link:
    """One login: a stub with its own cookie and connections, and the ServiceContent over it.

    `user` is what vCenter calls who logged in, as its permissions do.
    """

    stub: Any
    content: Any
    user: str


class Session:
    """A session that any thread may use. Work is given the ServiceContent."""

    def __init__(self, settings: VCenterSettings) -> None:
        """Connect and log in; AuthenticationError, VCenterUnreachableError."""
        self._settings = settings
        self._lock = threading.Lock()
        self._context = tls_context(settings)
        with self._spoken("log in"):
            self._version = _agree_on_version(settings, self._context)
            self._link = self._login()

    def call(self, what: str, work: Callable[[Any], T]) -> T:
        """Run `work(content)`; once more after a new login when the session had expired.

        `what` completes "vCenter could not …". vCenter refuses an expired
        session before it does anything, so running the work again is safe when
        its first call is the one that could be refused. Raises
        VCenterOperationError for a fault, VCenterUnreachableError,
        AuthenticationError.
        """
        with self._spoken(what):
            link = self._link
            try:
                return work(link.content)
            except vim.fault.NotAuthenticated:
                return work(self._renewed(link).content)

    def another(self) -> "Session":
        """A login of its own with the same settings: what is made in it ends with it."""
        return Session(self._settings)

    @property
    def settings(self) -> VCenterSettings:
        """What it was opened with."""
        return self._settings

    @property
    def tls(self) -> ssl.SSLContext:
        """How vCenter's certificate is checked."""
        return self._context

    @property
    def user(self) -> str:
        """What vCenter calls who is logged in, as in its permissions."""
        return self._link.user

    @property
    def answer_seconds(self) -> float:
        """How long one call may take."""
        return self._settings.answer_seconds

    @property
    def page_objects(self) -> int:
        """How many objects to ask for at once."""
        return self._settings.page_objects

    def close(self) -> None:
        """Log out and drop connections; a server that is gone already is no error."""
        link = self._link
        try:
            link.content.sessionManager.Logout()
        except (vmodl.MethodFault, OSError, http.client.HTTPException, ExpatError):
            return  # the session ends by itself when nobody uses it
        finally:
            link.stub.DropConnections()

    def _renewed(self, expired: _Link) -> _Link:
        """A login newer than `expired`: one thread makes it, the others use it."""
        with self._lock:
            if self._link is expired:
                self._link = self._login()
                expired.stub.DropConnections()
            return self._link

    def _login(self) -> _Link:
        """Log in over a new stub.

        A stub takes over the cookie of every answer it gets. On a stub that is
        shared, the refusal another thread is still waiting for would replace
        the cookie of the new session.
        """
        settings = self._settings
        stub = SoapStubAdapter(
            host=settings.host,
            port=settings.port,
            version=self._version,
            sslContext=self._context,
            httpConnectionTimeout=settings.answer_seconds,
            connectionPoolTimeout=_POOLED_SECONDS,
        )
        content: Any = vim.ServiceInstance("ServiceInstance", stub).RetrieveContent()
        session = content.sessionManager.Login(settings.user, settings.password, None)
        return _Link(stub, content, str(session.userName))

    @contextmanager
    def _spoken(self, what: str) -> Iterator[None]:
        """Turn what pyVmomi and the network raise into Atoll's errors; never shows the password."""
        settings = self._settings
        where = settings.address
        try:
            yield
        except vim.fault.InvalidLogin as fault:
            raise AuthenticationError(
                f"vCenter {where} refused user {settings.user}: wrong user name or password; "
                "check both in the settings."
            ) from fault
        # NotAuthenticated is a NoPermission, so it comes first.
        except vim.fault.NotAuthenticated as fault:
            raise AuthenticationError(
                f"vCenter {where} ended the session of user {settings.user} right after the login; "
                "check whether the account is limited or locked."
            ) from fault
        except vim.fault.NoPermission as fault:
            raise VCenterOperationError(
                f"vCenter {where} could not {what}: user {settings.user} lacks the privilege "
                f"{fault.privilegeId}; add it to the user's role."
            ) from fault
        except vmodl.MethodFault as fault:
            raise VCenterOperationError(
                f"vCenter {where} could not {what}: {_told(fault)}."
            ) from fault
        except ssl.SSLCertVerificationError as error:
            reason = getattr(error, "verify_message", "") or error.args[-1]
            raise AuthenticationError(
                f"The certificate of vCenter {where} was refused: {reason}; "
                "set ca_file or thumbprint if it is the right one."
            ) from error
        except (OSError, http.client.HTTPException, ExpatError) as error:
            raise VCenterUnreachableError(
                f"vCenter {where} did not answer: {_cause(error)}; "
                "check its address and whether it runs."
            ) from error


def _agree_on_version(settings: VCenterSettings, context: ssl.SSLContext) -> str:
    """The newest API version both sides speak, from /sdk/vimServiceVersions.xml.

    pyVmomi's own negotiation has no time-out and would hang on a dead address.
    """
    connection = http.client.HTTPSConnection(
        settings.host, settings.port, timeout=settings.connect_seconds, context=context
    )
    try:
        connection.request("GET", "/sdk/vimServiceVersions.xml")
        response = connection.getresponse()
        document = response.read(_MAX_VERSIONS_BYTES).decode("utf-8", "replace")
    finally:
        connection.close()
    offered: set[str] = set()
    if response.status == http.client.OK:
        for namespace in re.findall(r"<namespace>.*?</namespace>", document, re.DOTALL):
            if re.search(r"<name>\s*urn:vim25\s*</name>", namespace):
                offered.update(re.findall(r"<version>\s*([^<\s]+)\s*</version>", namespace))
    for version in VmomiSupport.GetServiceVersions("vim25"):
        if VmomiSupport.versionIdMap[version] in offered:
            return str(version)
    raise VCenterUnreachableError(
        f"{settings.address} answers but is no vCenter that Atoll can talk to; "
        "check the address and the port."
    )


def _told(fault: Any) -> str:
    return str(fault.msg or type(fault).__name__).rstrip(".")


def _cause(error: BaseException) -> str:
    if isinstance(error, socket.gaierror):
        return "the name is not known"
    if isinstance(error, ssl.SSLEOFError):
        return "the connection ended"
    if isinstance(error, TimeoutError):
        return "it took too long"
    return str(getattr(error, "strerror", None) or error or type(error).__name__).rstrip(".")
