"""The sidecar's side: answers calls with an object's methods.

Standard library and `atoll.model` only: this runs under whatever Python has the library, such as
the distribution's own.
"""

import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedRWPair
from itertools import islice
from pathlib import Path
from typing import Any

from atoll.model.errors import AtollError, StorageUnreachableError

_PART = 4096


def serve(
    calls: Mapping[str, Callable[..., Any]],
    *,
    reading: Iterable[str] = (),
    lock: Path | None = None,
) -> None:
    """Answer calls by name on standard input until the other side hangs up.

    A call returns something JSON can say, bytes, or an iterator, whose items are
    sent as they come. Calls not in `reading` change something: each holds `lock`,
    so that a call whose caller was killed ends before the next caller's begins,
    or is not begun any more.
    """
    free = frozenset(reading)
    # The library may print; whoever it prints to must not be the protocol.
    with socket.socket(fileno=os.dup(0)) as channel, channel.makefile("rwb") as stream:
        os.dup2(2, 1)
        for line in stream:
            request = json.loads(line)
            name = request["call"]
            try:
                with _alone(None if name in free else lock):
                    if _hung_up(channel):
                        return
                    _answer(stream, calls[name](**request["arguments"]))
            except BrokenPipeError:
                return
            except AtollError as error:
                _say(stream, {"error": error.code, "message": str(error)})
            except Exception as error:  # noqa: BLE001 - a library's error must not end the sidecar
                _say(
                    stream,
                    {
                        "error": StorageUnreachableError.code,
                        "message": f"{name} failed: {type(error).__name__}: {error}.",
                    },
                )


def _answer(stream: BufferedRWPair, result: object) -> None:
    if isinstance(result, bytes):
        _say(stream, {"bytes": len(result)}, result)
    elif isinstance(result, Iterator):
        while part := list(islice(result, _PART)):
            _say(stream, {"part": part})
        _say(stream, {"result": None})
    else:
        _say(stream, {"result": result})


def _say(stream: BufferedRWPair, message: Mapping[str, object], data: bytes = b"") -> None:
    stream.write(json.dumps(message).encode() + b"\n" + data)
    stream.flush()


def _hung_up(channel: socket.socket) -> bool:
    """Whether the caller, who waits for an answer, is gone."""
    try:
        return channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@contextmanager
def _alone(lock: Path | None) -> Iterator[None]:
    if lock is None:
        yield
        return
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
