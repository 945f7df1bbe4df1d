"""A read-only NBD server: disks for whatever backs up, boots or inspects them, not restored first."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from atoll.nbd.channel import Channel
from atoll.nbd.exports import Export, Failures, ReadFailure, Served
from atoll.nbd.listening import Address, Listener
from atoll.nbd.negotiation import Negotiation
from atoll.nbd.transmission import Transmission

_HANDSHAKE_SECONDS = 60.0
_THREADS_A_CLIENT = 4
_LEAST_CLIENTS, _CLIENTS_AN_EXPORT = 64, 8


class NbdServer:
    """Serves exports by name while the `with` block lasts.

    Any number of requests in flight from up to `clients` connections (64, or eight
    for each export, when none are given), each with threads and memory of its own,
    a few MiB, so that none waits for another. One more is hung up on. Writes are
    refused. A client that talks nonsense is disconnected. Read errors reach the client as I/O errors of that
    range and are kept; `on_failure` is told of each, from any thread. Readers must
    stay open until the block has ended. ValueError when two exports have one
    name; for the address see `Listener`.
    """

    def __init__(
        self,
        exports: Sequence[Export],
        address: Address,
        *,
        clients: int | None = None,
        on_failure: Callable[[ReadFailure], None] | None = None,
    ) -> None:
        self._failures = Failures(on_failure)
        served = [Served(export, self._failures) for export in exports]
        self._exports = {each.name: each for each in served}
        if len(self._exports) != len(served):
            raise ValueError("two NBD exports have the same name")
        self._address = address
        self._limit = clients or max(_LEAST_CLIENTS, _CLIENTS_AN_EXPORT * len(served))
        self._lock = threading.Lock()
        self._clients: dict[threading.Thread, Channel] = {}
        self._closing = False

    @property
    def failures(self) -> list[ReadFailure]:
        """What could not be read, the first thousand."""
        return self._failures.kept

    @property
    def failure_count(self) -> int:
        """How often something could not be read."""
        return self._failures.count

    def uri(self, name: str) -> str:
        """The address of an export, inside the `with` block."""
        return self._listener.uri(name)

    def __enter__(self) -> Self:
        """Listen."""
        self._listener = Listener(self._address)
        self._acceptor = threading.Thread(target=self._accept, name="nbd-accept", daemon=True)
        self._acceptor.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Disconnect every client, and wait until nobody reads any more."""
        with self._lock:
            self._closing = True
        self._listener.stop()
        self._acceptor.join()
        self._listener.close()
        with self._lock:
            clients = dict(self._clients)
        for channel in clients.values():
            channel.hang_up()
        for thread in clients:
            thread.join()

    def _accept(self) -> None:
        while (connection := self._listener.accept()) is not None:
            channel = Channel(connection)
            thread = threading.Thread(
                target=self._serve, args=(channel,), name="nbd-client", daemon=True
            )
            with self._lock:
                welcome = not self._closing and len(self._clients) < self._limit
                if welcome:
                    self._clients[thread] = channel
            if not welcome:
                channel.close()
                continue
            try:
                thread.start()
            except RuntimeError:  # the system gives no more threads
                with self._lock:
                    del self._clients[thread]
                channel.close()

    def _serve(self, channel: Channel) -> None:
        try:
            # For who never comes to the point there is an end to the handshake, not to idling after.
            channel.until(time.monotonic() + _HANDSHAKE_SECONDS)
            with suppress(OSError, EOFError):  # gone, or not worth talking to
                agreement = Negotiation(channel, self._exports, self._listener.tls).run()
                if agreement is not None:
                    agreement.channel.until(None)
                    Transmission(agreement, _THREADS_A_CLIENT).run()
        finally:
            with self._lock:
                self._clients.pop(threading.current_thread(), None)
            channel.close()
