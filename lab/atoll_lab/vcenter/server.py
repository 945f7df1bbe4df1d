"""HTTPS in front of the managed objects: sessions by cookie, one method a request."""

import contextlib
import logging
import socket
import ssl
import threading
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pyVmomi import VmomiSupport, vim, vmodl

from atoll_lab.vcenter import nfc, soap
from atoll_lab.vcenter.certificate import Certificate
from atoll_lab.vcenter.faults import DroppedConnection
from atoll_lab.vcenter.objects.base import Call
from atoll_lab.vcenter.objects.session_manager import SessionManager
from atoll_lab.vcenter.properties import value_at
from atoll_lab.vcenter.sessions import COOKIE, Session
from atoll_lab.vcenter.site import Site

_log = logging.getLogger(__name__)
_SDK = "/sdk"
_VERSIONS = "/sdk/vimServiceVersions.xml"
_NEWEST = "8.0.3.0"
_MAX_REQUEST_BYTES = 8 << 20
_IDLE_SECONDS = 900
_POLL_SECONDS = 0.05
_OPEN_TYPES = (vim.ServiceInstance, vim.SessionManager)
"""Kinds that answer before login, as with vCenter."""


class SdkServer(ThreadingHTTPServer):
    """The /sdk endpoint. Call `start`, then `stop`."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, site: Site, certificate: Certificate, address: str, port: int) -> None:
        super().__init__((address, port), _Handler)
        self.site = site
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(certificate.certificate_file, certificate.key_file)
        # The handshake happens in the connection's own thread, so that a client that never
        # finishes it holds up nobody.
        self.socket = context.wrap_socket(
            self.socket, server_side=True, do_handshake_on_connect=False
        )
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(
            target=self.serve_forever, args=(_POLL_SECONDS,), name="sdk", daemon=True
        )

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    def start(self) -> None:
        """Serve in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Wake waiting clients, stop serving, end every connection."""
        self.site.registry.close()
        self.shutdown()
        self._thread.join()
        self.server_close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):  # it may have ended by itself just now
                    connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection until it ends."""
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """The connection has ended."""
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave or refuse the certificate are not worth a traceback."""
        _log.debug("connection from %s ended", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    disable_nagle_algorithm = True
    server: SdkServer

    def log_message(self, format: str, *arguments: Any) -> None:
        _log.debug(format, *arguments)

    def do_GET(self) -> None:
        if self.path == _VERSIONS:
            self._send(200, _service_versions(), None)
        elif self.path.startswith(nfc.PREFIX):
            self.close_connection = True
            with contextlib.suppress(DroppedConnection, ConnectionError):
                nfc.give(self.server.site, self)
        else:
            self._send(404, b"", None)

    def do_PUT(self) -> None:
        self._take_disk()

    def do_POST(self) -> None:
        if self.path.startswith(nfc.PREFIX):
            self._take_disk()
            return
        length = int(self.headers.get("Content-Length", "0"))
        if self.path.rstrip("/") != _SDK or not 0 < length <= _MAX_REQUEST_BYTES:
            self.close_connection = True
            self._send(404, b"", None)
            return
        body = self.rfile.read(length)
        session = self.server.site.sessions.find(self._cookie())
        fresh = session is None
        if session is None:
            session = self.server.site.sessions.begin()
        try:
            status, answer = _answer(
                self.server.site, session, self.headers.get("SOAPAction", ""), body
            )
        except DroppedConnection:
            self.close_connection = True
            return
        self._send(status, answer, session if fresh else None)

    def _take_disk(self) -> None:
        self.close_connection = True
        try:
            status, said = nfc.receive(self.server.site, self)
        except DroppedConnection:
            return
        except vmodl.MethodFault as fault:  # its lease ended just now
            status, said = HTTPStatus.GONE, str(fault.msg)
        body = said.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _cookie(self) -> str | None:
        try:
            morsel = SimpleCookie(self.headers.get("Cookie", "")).get(COOKIE)
        except CookieError:
            return None
        return morsel.value if morsel else None

    def _send(self, status: int, body: bytes, new: Session | None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/xml; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if new is not None:
            self.send_header("Set-Cookie", f'{COOKIE}="{new.key}"; Path=/; HttpOnly; Secure')
        self.end_headers()
        self.wfile.write(body)


def _answer(site: Site, session: Session, soap_action: str, body: bytes) -> tuple[int, bytes]:
    version = VmomiSupport.newestVersions.Get("vim")
    try:
        version = soap.requested_version(soap_action)
        request = soap.parse_request(body, version)
        result, result_type = _run(site, Call(session, version), request)
        # Managed objects are read while they are serialised, so nothing may change meanwhile.
        with site.registry.reading():
            return 200, soap.reply(request.method, result, result_type, version)
    except vmodl.MethodFault as fault:
        return 500, soap.fault_reply(fault, version)
    except DroppedConnection:
        raise
    except Exception as error:  # noqa: BLE001 - a server answers a fault for its own bugs
        _log.exception("the simulator failed")
        failure = vmodl.fault.SystemError(msg=f"The simulator failed: {error}", reason=repr(error))
        return 500, soap.fault_reply(failure, version)


def _run(site: Site, call: Call, request: soap.Request) -> tuple[Any, Any]:
    moid = request.this._moId
    if call.session.user is None and not isinstance(request.this, _OPEN_TYPES):
        raise vim.fault.NotAuthenticated(
            msg="The session is not authenticated.",
            object=request.this,
            privilegeId="System.View",
        )
    managed = site.registry.require(moid)
    if managed.session not in (None, call.session.key):
        raise vmodl.fault.ManagedObjectNotFound(
            msg=f"The object {moid} belongs to another session", obj=request.this
        )
    targets = (moid, managed.display_name)
    site.faults.strike("before", request.method, targets)
    if request.method == soap.FETCH:
        path = request.arguments["prop"]
        if isinstance(managed, SessionManager) and path == "currentSession":
            value = managed.current_session(call)
        else:
            with site.registry.reading():
                value = value_at(managed, path)
        result_type = managed.kind._GetPropertyInfo(path).type
    else:
        value = managed.invoke(call, request.method, request.arguments)
        result_type = request.result_type
    site.faults.strike("after", request.method, targets)
    return value, result_type


def _service_versions() -> bytes:
    identifiers = [
        VmomiSupport.versionIdMap[version] for version in VmomiSupport.GetServiceVersions("vim25")
    ]
    known = [each for each in identifiers if each and not each.startswith("m")]
    prior = "".join(f"<version>{each}</version>" for each in known[known.index(_NEWEST) + 1 :])
    return (
        '<?xml version="1.0" encoding="UTF-8"?><namespaces version="1.0"><namespace>'
        f"<name>urn:vim25</name><version>{_NEWEST}</version>"
        f"<priorVersions>{prior}</priorVersions></namespace></namespaces>"
    ).encode()
