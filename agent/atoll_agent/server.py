"""HTTPS with certificates on both sides; only the director gets further than the handshake."""

import json
import socket
import socketserver
import ssl
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler
from typing import Any

from atoll_agent import __version__
from atoll_agent.arming import ARMED_SECONDS
from atoll_agent.clock import boottime
from atoll_agent.config import Config
from atoll_agent.errors import AgentError, BadRequestError, ForbiddenError
from atoll_agent.keeper import Keeper
from atoll_agent.protocol import MAX_BODY_BYTES, parse_freeze, parse_run

DIRECTOR_SAN = ("URI", "urn:atoll:director")

_MAX_CONNECTIONS = 16
_HANDSHAKE_SECONDS = 5.0
# The director keeps its connection from prepare to freeze, as long as the guest stays armed.
_IDLE_SECONDS = ARMED_SECONDS + 30.0


class AgentServer(socketserver.TCPServer):
    """Listens as configured. Each connection has a thread; what exceeds the limit is closed at once."""

    allow_reuse_address = True
    request_queue_size = 32

    def __init__(self, config: Config, keeper: Keeper) -> None:
        self.address_family = socket.AF_INET6 if ":" in config.address else socket.AF_INET
        self.config = config
        self.keeper = keeper
        self._tls = _tls_context(config)
        self._places = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__((config.address, config.port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        threading.Thread(target=self._serve, args=(request, client_address), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One line on standard error, and only while no file system may be frozen."""
        if self.keeper.state().state == "idle":
            error = sys.exc_info()[1]
            sys.stderr.write(f"atoll-agent: {client_address[0]}: {error!r}\n")

    def _serve(self, request: socket.socket, client_address: Any) -> None:
        try:
            request.settimeout(_HANDSHAKE_SECONDS)
            try:
                # Here and not in the listening thread, which a silent peer must not stop.
                tls = self._tls.wrap_socket(request, server_side=True)
            except (OSError, ValueError):
                # Port scans and strangers; they learn nothing and fill no log.
                self.shutdown_request(request)
                return
            try:
                tls.settimeout(_IDLE_SECONDS)
                self.finish_request(tls, client_address)
            except Exception:  # noqa: BLE001 - socketserver's own boundary of one request
                self.handle_error(tls, client_address)
            finally:
                self.shutdown_request(tls)
        finally:
            self._places.release()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "atoll-agent"
    sys_version = ""
    # An answer is one packet that leaves at once.
    wbufsize = -1
    disable_nagle_algorithm = True
    server: AgentServer

    def do_GET(self) -> None:
        self._answer({"/v1/status": lambda _: self._status()})

    def do_POST(self) -> None:
        keeper = self.server.keeper
        self._answer(
            {
                "/v1/prepare": self._prepare,
                "/v1/freeze": lambda body: asdict(keeper.freeze(parse_freeze(body))),
                "/v1/thaw": lambda body: asdict(keeper.thaw(parse_run(body).run)),
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
        if not length.isascii() or not length.isdigit() or int(length) > MAX_BODY_BYTES:
            self.close_connection = True
            raise BadRequestError(f"The body may have at most {MAX_BODY_BYTES} bytes.")
        return self.rfile.read(int(length))

    def _prepare(self, body: bytes) -> dict[str, Any]:
        run = parse_run(body).run
        self.server.keeper.prepare(run)
        return {"run": run}

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


def _tls_context(config: Config) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(config.certificate, config.key)
    context.load_verify_locations(config.authority)
    return context
