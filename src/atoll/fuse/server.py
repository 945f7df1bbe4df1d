"""Answers the kernel's requests from a tree, in as many threads as there are requests at once."""

import errno
import os
import select
import threading
from collections.abc import Callable
from pathlib import Path

from atoll.fuse import device, protocol
from atoll.fuse.interface import Attributes, FindNode, Node, WritableNode
from atoll.fuse.lanes import Lanes
from atoll.fuse.nodes import NodeTable
from atoll.fuse.protocol import Operation, Request
from atoll.model.errors import AtollError, MountError, NotFoundInPointError

_MAX_THREADS = 256
_SPARE_THREADS = 8
_AT_ONCE = (
    Operation.STATFS,
    Operation.RELEASE,
    Operation.RELEASEDIR,
    Operation.FLUSH,
    Operation.DESTROY,
)

OnFailure = Callable[[AtollError], None]
"""Told of each AtollError that a reader met as an errno."""


class FuseServer:
    """A tree mounted on a directory. Enter to mount, leave to unmount.

    Requests are answered side by side; those that wait, for a slow disk or a
    slow parser, keep only others of their lane waiting. `find` finds the nodes
    that have numbers of their own. `writable` lets the content of WritableNodes be written.
    """

    def __init__(
        self,
        root: Node,
        directory: Path,
        *,
        source: str,
        find: FindNode | None = None,
        allow_other: bool = False,
        writable: bool = False,
        on_failure: OnFailure | None = None,
    ) -> None:
        self._table = NodeTable(root, find)
        self._lanes = Lanes(_MAX_THREADS)
        self._directory = directory
        self._source = source
        self._allow_other = allow_other
        self._writable = writable
        self._on_failure = on_failure or (lambda error: None)
        self._counting = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._ended = threading.Event()
        self._device = -1
        self._stop = os.pipe2(os.O_CLOEXEC)
        self.was_in_use = False
        """Whether readers were cut off when the tree was unmounted at its end."""

    def __enter__(self) -> "FuseServer":
        """Mount; when this returns the tree answers."""
        self._device = device.mount(
            self._directory,
            source=self._source,
            allow_other=self._allow_other,
            max_read_bytes=protocol.MAX_READ_BYTES,
            writable=self._writable,
        )
        try:
            self._greet()
            self._start_thread()
            device.harden(self._directory, writable=self._writable)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Unmount, whoever still reads, and wait until the last request is answered."""
        if not self._ended.is_set():
            self.was_in_use = not device.let_go(self._directory)
        self._lanes.close()
        os.close(self._stop[1])
        for thread in list(self._threads):
            thread.join()
        os.close(self._stop[0])
        os.close(self._device)  # whoever still holds files of a mount that was in use loses them

    @property
    def descriptor(self) -> int:
        """What the kernel's requests come through. The mount is not dead while anybody has it open."""
        return self._device

    def wait(self, seconds: float) -> bool:
        """Whether somebody unmounted the tree, within that time."""
        return self._ended.wait(seconds)

    def _greet(self) -> None:
        buffer = bytearray(protocol.REQUEST_BYTES)
        length = os.readv(self._device, [buffer])
        request = protocol.parse(memoryview(buffer)[:length])
        major, minor = protocol.minor_of(request.body)
        if major != protocol.MAJOR or minor < protocol.LEAST_MINOR:
            raise MountError(
                f"This kernel speaks FUSE {major}.{minor}, and"
                f" {protocol.MAJOR}.{protocol.LEAST_MINOR} is needed (Linux 5.4 or later)."
            )
        self._send(request.unique, protocol.init_answer(request.body))
        os.set_blocking(self._device, False)

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._serve, name="fuse", daemon=True)
        self._threads.add(thread)
        self._idle += 1
        try:
            thread.start()
        except RuntimeError:  # the system gives no more
            self._threads.discard(thread)
            self._idle -= 1
            if not self._threads:
                raise

    def _serve(self) -> None:
        buffer = bytearray(protocol.REQUEST_BYTES)
        view = memoryview(buffer)
        waiting = select.epoll()
        # Exclusive: of the threads that wait a request wakes one.
        waiting.register(self._device, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        waiting.register(self._stop[0], select.EPOLLIN)
        try:
            while True:
                length = self._receive(buffer, waiting)
                if length == 0:
                    return
                self._taken()
                self._work(protocol.parse(view[:length]))
                if not self._done():
                    return
        finally:
            waiting.close()
            with self._counting:
                self._threads.discard(threading.current_thread())
                if not self._threads:
                    self._ended.set()

    def _receive(self, buffer: bytearray, waiting: select.epoll) -> int:
        """The length of the next request; 0 when there will be none."""
        while True:
            try:
                return os.readv(self._device, [buffer])
            except OSError as error:
                # Another thread took it, or it was interrupted before it was read; else unmounted.
                if error.errno not in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    return 0
            if any(ready == self._stop[0] for ready, _ in waiting.poll()):
                return 0

    def _taken(self) -> None:
        with self._counting:
            self._idle -= 1
            if self._idle == 0 and len(self._threads) < _MAX_THREADS:
                self._start_thread()

    def _done(self) -> bool:
        """Whether this thread is still needed."""
        with self._counting:
            if self._idle >= _SPARE_THREADS:
                return False
            self._idle += 1
            return True

    def _work(self, request: Request) -> None:
        """Answer a request and then those that waited for it, unless it has to wait itself."""
        match request.operation:
            case Operation.FORGET | Operation.BATCH_FORGET:
                for number, answers in protocol.forgotten(request):
                    self._table.forget(number, answers)
                return
            case Operation.INTERRUPT:
                unique = protocol.interrupted(request.body)
                if self._lanes.withdraw(unique):
                    self._send(unique, b"", errno.EINTR)
                return
        lane = None if request.operation in _AT_ONCE else self._table.lane(request.node)
        if lane is None:
            self._answer(request)
            return
        if not self._lanes.admit(lane, request):
            return
        following: Request | None = request
        while following is not None:
            try:
                self._answer(following)
            finally:
                following = self._lanes.done(lane)

    def _answer(self, request: Request) -> None:
        number, body = 0, b""
        try:
            body = self._result(request)
        except NotFoundInPointError:
            number = errno.ENOENT
        except AtollError as error:
            number = errno.EIO
            self._on_failure(error)
        except OSError as error:
            number = error.errno or errno.EIO
        except MemoryError:
            number = errno.ENOMEM
        except Exception as error:  # noqa: BLE001 - one request must not cost the others their tree
            number = errno.EIO
            self._on_failure(
                AtollError(
                    f"A request failed with {type(error).__name__}: {error}; this is a defect of Atoll."
                )
            )
        self._send(request.unique, body, number)

    def _send(self, unique: int, body: bytes, error: int = 0) -> None:
        head = protocol.answer_head(unique, len(body), error)
        try:
            os.writev(self._device, [head, body] if body else [head])
        except OSError as failure:
            # The reader was killed meanwhile, or the tree unmounted: nobody waits for this. Whatever
            # else the kernel does not like about an answer, its reader has got an error.
            if failure.errno not in (errno.ENOENT, errno.ENODEV, errno.EINTR):
                self._on_failure(
                    AtollError(
                        f"The kernel refused an answer ({failure.strerror}); this is a defect of Atoll."
                    )
                )

    def _result(self, request: Request) -> bytes:
        if request.operation in _AT_ONCE:
            return protocol.statfs_answer() if request.operation == Operation.STATFS else b""
        node = self._table.node(request.node)
        if node is None:
            raise OSError(errno.ESTALE, "unknown node")
        body = request.body
        match request.operation:
            case Operation.LOOKUP:
                found = node.lookup(protocol.name_of(body))
                if found is None:
                    raise FileNotFoundError(errno.ENOENT, "no such name")
                return self._entry(found, found.attributes())
            case Operation.GETATTR:
                return protocol.attributes_answer(node.attributes())
            case Operation.READLINK:
                return node.target()
            case Operation.OPEN:
                return protocol.open_answer(uncached=node.uncached, directory=False)
            case Operation.OPENDIR:
                # Fails here if at all: some backup software takes an error of readdir for the end.
                next(node.names(0), None)
                return protocol.open_answer(uncached=node.uncached, directory=True)
            case Operation.READ:
                return node.read(*protocol.range_of(body))
            case Operation.WRITE if isinstance(node, WritableNode):
                offset, data = protocol.write_of(body)
                node.write(offset, data)
                return protocol.size_answer(len(data))
            case Operation.FSYNC if isinstance(node, WritableNode):
                node.flush()
                return b""
            case Operation.READDIR | Operation.READDIRPLUS:
                return self._listing(node, request)
            case Operation.LSEEK:
                offset, whence = protocol.seek_of(body)
                return protocol.number_answer(node.data_or_hole(offset, whence == os.SEEK_HOLE))
            case Operation.GETXATTR | Operation.LISTXATTR:
                return self._xattr(node, request)
        raise OSError(errno.ENOSYS, "not offered")

    def _entry(self, node: Node, attributes: Attributes) -> bytes:
        return protocol.entry_answer(self._table.remember(node), attributes)

    def _listing(self, directory: Node, request: Request) -> bytes:
        start, room = protocol.range_of(request.body)
        plus = request.operation == Operation.READDIRPLUS
        listing = bytearray()
        for following, (name, inode, mode, node) in enumerate(directory.names(start), start + 1):
            row = protocol.directory_entry(inode, following, mode, name)
            size = len(row) + (len(protocol.NO_ENTRY) if plus else 0)
            if len(listing) + size > room:
                break
            if plus:
                # Remembered only now that it is sure to be part of the answer.
                listing += (
                    protocol.NO_ENTRY if node is None else self._entry(node, node.attributes())
                )
            listing += row
        return bytes(listing)

    def _xattr(self, node: Node, request: Request) -> bytes:
        room, name = protocol.xattr_wanted(request.body)
        attributes = node.xattrs()
        if request.operation == Operation.LISTXATTR:
            value = b"".join(each + b"\0" for each in attributes)
        elif name in attributes:
            value = attributes[name]
        else:
            raise OSError(errno.ENODATA, "no such attribute")
        if room == 0:
            return protocol.size_answer(len(value))
        if len(value) > room:
            raise OSError(errno.ERANGE, "too small")
        return value
