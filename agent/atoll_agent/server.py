"""HTTPS with certificates on both sides; only the director gets further than the handshake."""

import base64
import json
import socket
import socketserver
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler
from typing import Any

from atoll_agent import __version__
from atoll_agent.application import Application
from atoll_agent.arming import ARMED_SECONDS
from atoll_agent.clock import Deadline, boottime
from atoll_agent.config import Config
from atoll_agent.errors import AgentError, BadRequestError, BusyError, ForbiddenError
from atoll_agent.handshake import Doorway
from atoll_agent.identity import Identity
from atoll_agent.keeper import Keeper
from atoll_agent.protocol import (
    MAX_BODY_BYTES,
    MAX_INSTALL_BYTES,
    parse_freeze,
    parse_install,
    parse_nothing,
    parse_run,
    parse_thaw,
)
from atoll_agent.vmware.holding import VmwareHolding

DIRECTOR_SAN = ("URI", "urn:atoll:director")

# The director keeps its connection from prepare to freeze, as long as the guest stays armed.
_IDLE_SECONDS = ARMED_SECONDS + 30.0
_REMARK_SECONDS = 10.0


class AgentServer(socketserver.TCPServer):
    """Listens as configured. Each connection has a thread; what exceeds the limit is closed at once."""

    allow_reuse_address = True
    request_queue_size = 32

    def __init__(self, config: Config, keeper: Keeper, vmware: VmwareHolding | None = None) -> None:
        self.address_family = socket.AF_INET6 if ":" in config.address else socket.AF_INET
        self.config = config
        self.keeper = keeper
        self.vmware = vmware
        self.identity = Identity(config)
        self._doorway = Doorway()
        super().__init__((config.address, config.port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._doorway.enter(client_address[0]):
            self.shutdown_request(request)
            return
        threading.Thread(target=self._serve, args=(request, client_address), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One line on standard error, and only while no file system may be frozen."""
        held = self.vmware is not None and self.vmware.under_way
        if self.keeper.state().state == "idle" and not held:
            error = sys.exc_info()[1]
            sys.stderr.write(f"atoll-agent: {client_address[0]}: {error!r}\n")

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Keeps the director's holds from beginning meanwhile. Raises BusyError during any hold."""
        if self.vmware is not None and self.vmware.under_way:
            raise BusyError("VMware Tools holds this guest; ask again after it.")
        with self.keeper.undisturbed():
            yield

    def _serve(self, request: socket.socket, client_address: Any) -> None:
        with self._doorway.passing(client_address[0]) as passed:
            # Here and not in the listening thread, which a silent peer must not stop.
            tls = self._doorway.shake_hands(request, self.identity.context)
            if tls is None:
                # Port scans and strangers; they learn nothing and fill no log.
                self.shutdown_request(request)
                return
            passed()
            try:
                tls.settimeout(_IDLE_SECONDS)
                self.finish_request(tls, client_address)
            except Exception:  # noqa: BLE001 - socketserver's own boundary of one request
                self.handle_error(tls, client_address)
            finally:
                self.shutdown_request(tls)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "atoll-agent"
    sys_version = ""
    # An answer is one packet that leaves at once.
    wbufsize = -1
    disable_nagle_algorithm = True
    server: AgentServer

    def do_GET(self) -> None:
        self._answer(
            {
                "/v1/status": lambda _: self._status(),
                "/v1/look": lambda _: self._look(),
                "/v1/vmware": lambda _: self._vmware(),
            }
        )

    def do_POST(self) -> None:
        keeper = self.server.keeper
        self._answer(
            {
                "/v1/prepare": self._prepare,
                "/v1/freeze": lambda body: asdict(keeper.freeze(parse_freeze(body))),
                "/v1/thaw": self._thaw,
                "/v1/renew": self._renew,
                "/v1/install": self._install,
            }
        )

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a log may lie on a frozen file system."""

    def _answer(self, routes: dict[str, Callable[[bytes], dict[str, Any]]]) -> None:
        try:
            self._check_peer()
            body = self._body()
            route = routes.get(self.path)
            if route is None:
                self._send(404, {"code": "not-found", "message": "There is no such call."})
                return
            answer = route(body)
        except AgentError as error:
            self._send(error.http_status, {"code": error.code, "message": str(error)})
            return
        self._send(200, answer)

    def _check_peer(self) -> None:
        """The authority signs agents too; only its director may give orders."""
        assert isinstance(self.connection, ssl.SSLSocket)
        certificate = self.connection.getpeercert() or {}
        if DIRECTOR_SAN not in certificate.get("subjectAltName", ()):
            self.close_connection = True
            raise ForbiddenError("The certificate is not the director's.")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding"):
            self.close_connection = True
            raise BadRequestError("The body must have a Content-Length.")
        length = self.headers.get("Content-Length", "0")
        most = MAX_INSTALL_BYTES if self.path == "/v1/install" else MAX_BODY_BYTES
        # Python refuses to read numbers of thousands of digits, so those are not even tried.
        good = length.isascii() and length.isdigit() and len(length) <= 9
        if not good or int(length) > most:
            self.close_connection = True
            raise BadRequestError(f"The body may have at most {most} bytes.")
        return self.rfile.read(int(length))

    def _thaw(self, body: bytes) -> dict[str, Any]:
        request = parse_thaw(body)
        return asdict(self.server.keeper.thaw(request.run, request.snapshot))

    def _prepare(self, body: bytes) -> dict[str, Any]:
        run = parse_run(body).run
        self.server.keeper.prepare(run)
        return {"run": run}

    def _renew(self, body: bytes) -> dict[str, Any]:
        parse_nothing(body)
        public = self.server.identity.new_key(self.server.undisturbed)
        return {"public_key": base64.b64encode(public).decode()}

    def _install(self, body: bytes) -> dict[str, Any]:
        asked = parse_install(body)
        self.server.identity.install(asked.certificate, asked.authorities, self.server.undisturbed)
        return {"installed": True}

    def _look(self) -> dict[str, Any]:
        with self.server.undisturbed():
            pass
        found, mounts = self.server.keeper.look()
        return {
            "applications": [
                {"kind": one.kind, "name": one.name, "remark": remark_on(one)} for one in found
            ],
            "filesystems": [
                {"mount": mount.mountpoint, "fstype": mount.fstype, "source": mount.source}
                for mount in mounts
            ],
        }

    def _vmware(self) -> dict[str, Any]:
        vmware = self.server.vmware
        return {"account": None if vmware is None else vmware.account()}

    def _status(self) -> dict[str, Any]:
        config = self.server.config
        return {
            "version": __version__,
            "name": config.name,
            "instance_uuid": config.instance_uuid,
            **asdict(self.server.keeper.state()),
            "guest_time": time.time(),
            "uptime_seconds": boottime(),
        }

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        # A director that hung up learns the outcome from its next thaw.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()


def remark_on(application: Application) -> str:
    """How a server that was found will be held, or what is missing for that."""
    return application.remark(Deadline(_REMARK_SECONDS))
