"""A MongoDB server as far as locking it for a backup goes, over its wire protocol.

Built from the manual (fsync, fsyncUnlock, currentOp, hello) and the server's
sources (commands/fsync.cpp, error_codes.yml), and checked by hand with PyMongo
4.20, which logs in to it and runs these commands. What it enforces:
authentication before anything but a greeting, privileges by action, locks that
are counted and stay when their connection is gone, writers that wait while it
is locked or about to be, a lock that waits for running writers.
"""

import base64
import contextlib
import hashlib
import hmac
import os
import socket
import struct
import threading

from atoll_agent.modules import bson
from atoll_agent.modules.bson import Timestamp

_OP_QUERY, _OP_REPLY, _OP_MSG = 2004, 1, 2013
_GREETINGS = {"isMaster", "ismaster", "hello"}
_ACTIONS = {"fsync": "fsync", "fsyncUnlock": "unlock", "currentOp": "inprog", "insert": "insert"}


class _Failure(Exception):
    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class FakeMongod:
    """Serves on a UNIX socket until closed. `users` are names with password and allowed actions.

    `lock_timeout` is what the server does with a limit for the lock: `known`
    (5.0.22, 6.0.11, 7.0.2 and later), `ignored` (before), or `refused` as
    strict servers do with fields they do not know. `tls` is a context for a
    server that speaks nothing else.
    """

    def __init__(self, path, users=None, replica_set=True, lock_timeout="known", tls=None):
        self.path = str(path)
        self.users = users or {}
        self.replica_set = replica_set
        self.lock_timeout = lock_timeout
        self.tls = tls
        self.collections = {}
        self.lock_count = 0
        self.flushes = 0
        self.written = 0
        self.refuse_unlocks = 0
        self._pending = 0
        self._writers = 0
        self._changed = threading.Condition()
        self._connections = set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        """As a server that is killed: its locks are gone with it."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        os.unlink(self.path)
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def long_write(self):
        """A write that takes its time: a lock waits for its end."""
        with self._changed:
            self._writers += 1
        try:
            yield
        finally:
            with self._changed:
                self._writers -= 1
                self._changed.notify_all()

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        session = {"user": None}
        with contextlib.suppress(OSError), self._secured(connection) as connection:
            while True:
                header = _exactly(connection, 16)
                if header is None:
                    break
                length, request, _, kind = struct.unpack("<iiii", header)
                body = _exactly(connection, length - 16)
                if kind == _OP_QUERY:
                    # The greeting that drivers begin with.
                    at = body.index(0, 4) + 1 + 8
                    answer = bson.encode(self._answer(bson.decode(body[at:]), session))
                    data = struct.pack("<iqii", 8, 0, 0, 1) + answer
                    kind = _OP_REPLY
                else:
                    answer = bson.encode(self._answer(_sections(body), session))
                    data = struct.pack("<IB", 0, 0) + answer
                connection.sendall(struct.pack("<iiii", len(data) + 16, 1, request, kind) + data)
        self._connections.discard(connection)

    def _secured(self, connection):
        return self.tls.wrap_socket(connection, server_side=True) if self.tls else connection

    def _answer(self, command, session):
        name = next(iter(command))
        try:
            self._authorise(name, session)
            answer = getattr(self, f"_do_{name}", _unknown)(command, session)
        except _Failure as failure:
            return {"ok": 0.0, "errmsg": str(failure), "code": failure.code}
        return {**answer, "ok": 1.0}

    def _authorise(self, name, session):
        if not self.users or name in _GREETINGS or name.startswith("sasl"):
            return
        if session["user"] is None:
            raise _Failure(13, f"command {name} requires authentication")
        action = _ACTIONS.get(name)
        if action and action not in self.users[session["user"]][1]:
            raise _Failure(13, f"not authorized on admin to execute command {name}")

    def _do_hello(self, command, session):
        answer = {
            "helloOk": True,
            "ismaster": True,
            "maxBsonObjectSize": 16 << 20,
            "maxMessageSizeBytes": 48_000_000,
            "maxWriteBatchSize": 100_000,
            "minWireVersion": 0,
            "maxWireVersion": 17,
            "readOnly": False,
        }
        if self.replica_set:
            when = Timestamp(1_700_000_000, self.written + 1)
            answer |= {
                "setName": "rs0",
                "hosts": [self.path],
                "me": self.path,
                "primary": self.path,
            }
            answer |= {"setVersion": 1, "lastWrite": {"opTime": {"ts": when, "t": 1}}}
        return answer

    _do_isMaster = _do_ismaster = _do_hello

    def _do_ping(self, command, session):
        return {}

    def _do_endSessions(self, command, session):
        return {}

    def _do_saslStart(self, command, session):
        assert command["mechanism"] == "SCRAM-SHA-256"
        first = command["payload"].decode().removeprefix("n,,")
        fields = dict(part.split("=", 1) for part in first.split(","))
        if fields["n"] not in self.users:
            raise _Failure(18, "Authentication failed.")
        salt, nonce = os.urandom(28), fields["r"] + base64.b64encode(os.urandom(18)).decode()
        password = self.users[fields["n"]][0]
        session["salted"] = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 15000)
        server = f"r={nonce},s={base64.b64encode(salt).decode()},i=15000"
        session |= {"asked": fields["n"], "signed": f"{first},{server}", "nonce": nonce}
        return {"conversationId": 1, "done": False, "payload": server.encode()}

    def _do_saslContinue(self, command, session):
        last, _, proof = command["payload"].decode().rpartition(",p=")
        assert last == f"c=biws,r={session['nonce']}"
        signed = f"{session['signed']},{last}".encode()
        key = hmac.digest(session["salted"], b"Client Key", "sha256")
        signature = hmac.digest(hashlib.sha256(key).digest(), signed, "sha256")
        expected = bytes(a ^ b for a, b in zip(key, signature, strict=True))
        if base64.b64decode(proof) != expected:
            raise _Failure(18, "Authentication failed.")
        session["user"] = session["asked"]
        server = hmac.digest(
            hmac.digest(session["salted"], b"Server Key", "sha256"), signed, "sha256"
        )
        payload = b"v=" + base64.b64encode(server)
        return {"conversationId": 1, "done": True, "payload": payload}

    def _do_insert(self, command, session):
        with self._changed:
            self._changed.wait_for(lambda: not self.lock_count and not self._pending)
            documents = command["documents"]
            self.collections.setdefault(command["insert"], []).extend(documents)
            self.written += len(documents)
        return {"n": len(documents)}

    def _do_count(self, command, session):
        return {"n": len(self.collections.get(command["count"], []))}

    def _do_fsync(self, command, session):
        if not command.get("lock"):
            self.flushes += 1
            return {"numFiles": 1}
        limit = command.get("fsyncLockAcquisitionTimeoutMillis")
        if limit is not None and self.lock_timeout == "refused":
            raise _Failure(40415, "BSON field 'fsyncLockAcquisitionTimeoutMillis' is unknown")
        if self.lock_timeout == "ignored" or not command.get("forBackup"):
            limit = None
        with self._changed:
            self._pending += 1
            got = self._changed.wait_for(
                lambda: not self._writers, None if limit is None else limit / 1000
            )
            self._pending -= 1
            self._changed.notify_all()
            if not got:
                raise _Failure(24, "Fsync lock timed out")
            self.lock_count += 1
            self.flushes += 1
            return {"info": "now locked against writes", "lockCount": self.lock_count}

    def _do_fsyncUnlock(self, command, session):
        with self._changed:
            if self.refuse_unlocks:
                self.refuse_unlocks -= 1
                raise _Failure(11600, "interrupted")
            if not self.lock_count:
                raise _Failure(20, "fsyncUnlock called when not locked")
            self.lock_count -= 1
            self._changed.notify_all()
            return {"info": "fsyncUnlock completed", "lockCount": self.lock_count}

    def _do_currentOp(self, command, session):
        running = [{"command": {"fsync": 1, "lock": True}} for _ in range(self._pending)]
        # A server counts as locked from when a lock is asked for.
        locked = {"fsyncLock": True} if self.lock_count or self._pending else {}
        return {"inprog": running, **locked}


def _sections(body):
    """The command of an OP_MSG, with the documents that drivers send beside it put into it."""
    assert body[4] == 0
    command = bson.decode(body[5:])
    at = 5 + struct.unpack_from("<i", body, 5)[0]
    while at < len(body):
        assert body[at] == 1
        end = at + 1 + struct.unpack_from("<i", body, at + 1)[0]
        name_end = body.index(0, at + 5)
        documents = command.setdefault(body[at + 5 : name_end].decode(), [])
        at = name_end + 1
        while at < end:
            documents.append(bson.decode(body[at:]))
            at += struct.unpack_from("<i", body, at)[0]
    return command


def _unknown(command, session):
    raise _Failure(59, f"no such command: '{next(iter(command))}'")


def _exactly(connection, count):
    received = b""
    while len(received) < count:
        part = connection.recv(count - len(received))
        if not part:
            return None
        received += part
    return received
