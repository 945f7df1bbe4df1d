"""Stands between an S3 client and its server and does to chosen requests what networks and servers do.

Everything else is passed on as it came, so that signatures stay valid.
"""

import http.client
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast


@dataclass(frozen=True)
class Answer:
    """The server is not asked; this is the answer."""

    status: int
    code: str

    @property
    def body(self) -> bytes:
        return (
            f"<?xml version='1.0'?><Error><Code>{self.code}</Code>"
            "<Message>Key AKIA-IN-MESSAGE is slow</Message></Error>"
        ).encode()


@dataclass(frozen=True)
class ResetBefore:
    """The connection breaks and the server hears nothing."""


@dataclass(frozen=True)
class ResetAfter:
    """The server does what it was asked, and the connection breaks before it can say so."""


@dataclass(frozen=True)
class Late:
    """The connection breaks; the server does what it was asked when `S3Proxy.release` is called."""


@dataclass(frozen=True)
class Cut:
    """The connection breaks after so many bytes of the answer's body."""

    after: int


@dataclass(frozen=True)
class Rewrite:
    """The answer's body is changed."""

    change: Callable[[bytes], bytes]


@dataclass(frozen=True)
class First:
    """Something happens, then the request is passed on."""

    work: Callable[[], object]


Act = Answer | ResetBefore | ResetAfter | Late | Cut | Rewrite | First


@dataclass(frozen=True)
class Request:
    """What came in."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass
class _Rule:
    method: str
    part: str
    acts: list[Act]
    always: bool


class S3Proxy:
    """A server of its own on loopback, in front of the one at `port`."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        self._to = port
        self._rules: list[_Rule] = []
        self._late: list[Request] = []
        self._lock = threading.Lock()
        self.seen: list[Request] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if context is None else "https"
        self.endpoint = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def on(self, method: str, part: str, *acts: Act, always: bool = False) -> None:
        """One act for each of the next requests of that method whose target has `part` in it."""
        self._rules.append(_Rule(method, part, list(acts), always))

    def clear(self) -> None:
        """No more acts."""
        with self._lock:
            self._rules.clear()

    @property
    def left(self) -> int:
        """Acts that no request has met."""
        with self._lock:
            return sum(len(rule.acts) for rule in self._rules if not rule.always)

    def release(self) -> int:
        """Have the server do what was kept from it; how many requests."""
        with self._lock:
            late, self._late = self._late, []
        for request in late:
            self.forward(request)
        return len(late)

    def act(self, request: Request) -> Act | None:
        with self._lock:
            self.seen.append(request)
            for rule in self._rules:
                if rule.method == request.method and rule.part in request.target and rule.acts:
                    return rule.acts[0] if rule.always else rule.acts.pop(0)
        return None

    def keep(self, request: Request) -> None:
        with self._lock:
            self._late.append(request)

    def forward(self, request: Request) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._to, timeout=60)
        try:
            connection.putrequest(
                request.method, request.target, skip_host=True, skip_accept_encoding=True
            )
            for key, value in request.headers:
                if key.lower() not in {"expect", "connection"}:
                    connection.putheader(key, value)
            connection.endheaders(request.body)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> "S3Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    proxy: S3Proxy

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that break off are what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        proxy = cast(_Server, self.server).proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        assert self.command is not None
        request = Request(self.command, self.path, tuple(self.headers.items()), body)
        act = proxy.act(request)
        match act:
            case Answer():
                self._send(act.status, (), act.body)
            case ResetBefore():
                self._reset()
            case Late():
                proxy.keep(request)
                self._reset()
            case _:
                if isinstance(act, First):
                    act.work()
                answer, data = proxy.forward(request)
                if isinstance(act, ResetAfter):
                    self._reset()
                    return
                if isinstance(act, Rewrite):
                    data = act.change(data)
                cut = act.after if isinstance(act, Cut) else None
                self._send(answer.status, answer.getheaders(), data, cut)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _serve

    def _send(
        self,
        status: int,
        headers: "list[tuple[str, str]] | tuple[()]",
        body: bytes,
        cut: int | None = None,
    ) -> None:
        self.send_response_only(status)
        length = str(len(body))
        for key, value in headers:
            if key.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif key.lower() not in {"content-length", "connection", "transfer-encoding"}:
                self.send_header(key, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self._reset()

    def _reset(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Not `shutdown`, which the server would do: that ends a connection in good order.
        socket.socket.close(self.connection)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is logged."""
