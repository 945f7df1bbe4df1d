"""The management side of a fake array: REST over HTTPS, with faults on request."""

import datetime
import ipaddress
import json
import re
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Request:
    """A request as it came; `query` holds each key once, as arrays take it."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Reply:
    """What goes back: JSON unless None."""

    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Api(Protocol):
    """What answers requests; calls come one at a time."""

    def answer(self, request: Request) -> Reply: ...


Kind = Literal["status", "drop", "drop-after"]


@dataclass
class Fault:
    """What is to go wrong for the next `times` requests that match method and path.

    `drop` hangs up instead of doing anything, `drop-after` when it is done.
    """

    method: str
    path: str
    kind: Kind = "status"
    status: int = 500
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    times: int = 1
    fired: int = 0

    def matches(self, request: Request) -> bool:
        return (
            self.fired < self.times
            and request.method == self.method
            and re.fullmatch(self.path, request.path) is not None
        )


class ArrayServer:
    """Serves an Api on loopback until closed; `ca_file` is what trusts it."""

    def __init__(self, api: Api, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.ca_file = directory / "array-ca.pem"
        self._api = api
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self.requests: list[Request] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(_certificate(self.ca_file, directory / "array-key.pem"))
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 60
            wbufsize = 1 << 16
            disable_nagle_algorithm = True

            def _handle(self) -> None:
                outer._serve(self)

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _handle

            def log_message(self, *_: object) -> None:
                """Nothing: requests are kept instead."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def faults(self, *faults: Fault) -> Iterator[None]:
        """Have these go wrong in the block; each must have fired as often as it was to."""
        self._faults += faults
        try:
            yield
        finally:
            self._faults = [fault for fault in self._faults if fault not in faults]
        for fault in faults:
            assert fault.fired == fault.times, f"{fault} fired {fault.fired} times"

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        length = int(handler.headers.get("Content-Length") or 0)
        raw = handler.rfile.read(length)
        request = Request(
            handler.command,
            unquote(url.path),
            dict(parse_qsl(url.query, keep_blank_values=True)),
            {key.lower(): value for key, value in handler.headers.items()},
            json.loads(raw) if raw else {},
        )
        with self._lock:
            self.requests.append(request)
            fault = next((each for each in self._faults if each.matches(request)), None)
            if fault is not None:
                fault.fired += 1
            if fault is None or fault.kind == "drop-after":
                reply = self._api.answer(request)
            else:
                reply = Reply(fault.status, fault.body, fault.headers)
        if fault is not None and fault.kind != "status":
            handler.close_connection = True
            with suppress(OSError):
                handler.connection.close()
            return
        body = b"" if reply.body is None else json.dumps(reply.body).encode()
        handler.send_response(reply.status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        for key, value in reply.headers.items():
            handler.send_header(key, value)
        handler.end_headers()
        handler.wfile.write(body)


def paged(items: list[Any], start: int, limit: int | None, most: int) -> tuple[list[Any], int]:
    """A page, and where the next begins; 0 when there is none."""
    size = min(limit or most, most)
    page = items[start : start + size]
    end = start + len(page)
    return page, end if end < len(items) else 0


def wildcard(pattern: str, text: str) -> bool:
    """Whether a name is as a pattern with `*` says."""
    expression = ".*".join(re.escape(part) for part in pattern.split("*"))
    return re.fullmatch(expression, text, re.DOTALL) is not None


def now_milliseconds() -> int:
    return int(time.time() * 1000)


def _certificate(ca_file: Path, key_file: Path) -> Path:
    """A certificate of its own authority for 127.0.0.1; returns the file with it and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "array.test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    ca_file.write_bytes(pem)
    key_file.touch(mode=0o600)
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + pem
    )
    return key_file
