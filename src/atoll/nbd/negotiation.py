"""The handshake: from a new connection to an export and a way to talk about it.

Source: doc/proto.md, "Handshake" and "Option types"; TLS is forced or absent ("FORCEDTLS mode").
"""

import ssl
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from atoll.nbd import protocol as nbd
from atoll.nbd.channel import Channel
from atoll.nbd.contexts import StatusMap, listed
from atoll.nbd.exports import Served

_MAX_OPTION_BYTES = 64 << 10
_FLAGS = nbd.FLAG_HAS_FLAGS | nbd.FLAG_READ_ONLY | nbd.FLAG_CAN_MULTI_CONN | nbd.FLAG_SEND_CACHE


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a client and the server agreed on. `contexts` are by the number used in replies."""

    channel: Channel
    export: Served
    structured: bool
    contexts: tuple[tuple[int, StatusMap], ...]


class _Refused(Exception):
    """An option that is answered with an error."""

    def __init__(self, kind: int, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Negotiation:
    """One client's option haggling, by one thread.

    With a `tls` context nothing but STARTTLS is answered before it succeeded.
    """

    def __init__(
        self, channel: Channel, exports: Mapping[bytes, Served], tls: ssl.SSLContext | None
    ) -> None:
        self._channel = channel
        self._exports = exports
        self._tls = tls
        self._encrypted = False
        self._no_zeroes = False
        self._agreed: Served | None = None
        self._forget()

    def run(self) -> Agreement | None:
        """What was agreed on, None when the client left or talked nonsense; EOFError, OSError."""
        self._channel.send([nbd.INIT, struct.pack(">H", nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES)])
        (flags,) = struct.unpack(">I", self._channel.receive(4))
        if flags & ~(nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES):
            return None
        self._no_zeroes = bool(flags & nbd.NO_ZEROES)
        while self._agreed is None:
            magic, option, length = nbd.OPTION.unpack(self._channel.receive(nbd.OPTION.size))
            if magic != nbd.OPTION_MAGIC or length > _MAX_OPTION_BYTES:
                return None
            if not self._answer(option, self._channel.receive(length)):
                return None
        chosen = self._contexts if self._contexts_of is self._agreed else []
        return Agreement(
            self._channel,
            self._agreed,
            self._structured,
            tuple((number, self._agreed.status(name)) for number, name in enumerate(chosen, 1)),
        )

    def _forget(self) -> None:
        self._structured = False
        self._contexts: list[str] = []
        self._contexts_of: Served | None = None

    def _answer(self, option: int, data: bytes) -> bool:
        """False ends the connection."""
        try:
            return self._act(option, data)
        except _Refused as refusal:
            self._reply(option, refusal.kind, str(refusal).encode())
            return True

    def _act(self, option: int, data: bytes) -> bool:
        if option == nbd.OPT_ABORT:
            self._reply(option, nbd.REP_ACK)
            return False
        if option == nbd.OPT_STARTTLS:
            self._start_tls(data)
            return True
        if self._tls is not None and not self._encrypted:
            if option == nbd.OPT_EXPORT_NAME:
                return False  # an error cannot be said here
            raise _Refused(nbd.REP_ERR_TLS_REQD, "Only TLS is spoken here; start it first.")
        if option == nbd.OPT_EXPORT_NAME:
            return self._enter_by_name(data)
        if option == nbd.OPT_LIST:
            self._list(data)
        elif option in (nbd.OPT_INFO, nbd.OPT_GO):
            self._inform(option, data)
        elif option == nbd.OPT_STRUCTURED_REPLY:
            _must_be_empty(data)
            self._structured = True
        elif option in (nbd.OPT_LIST_META_CONTEXT, nbd.OPT_SET_META_CONTEXT):
            self._meta_contexts(option, data)
        else:
            raise _Refused(nbd.REP_ERR_UNSUP, "This option is not known here.")
        self._reply(option, nbd.REP_ACK)
        return True

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        self._channel.send([nbd.option_reply(option, kind, data)])

    def _start_tls(self, data: bytes) -> None:
        if self._tls is None:
            raise _Refused(nbd.REP_ERR_POLICY, "TLS is not spoken here.")
        if self._encrypted:
            raise _Refused(nbd.REP_ERR_INVALID, "TLS was started already.")
        _must_be_empty(data)
        self._reply(nbd.OPT_STARTTLS, nbd.REP_ACK)
        self._channel = self._channel.under_tls(self._tls)
        self._encrypted = True
        self._forget()

    def _enter_by_name(self, name: bytes) -> bool:
        export = self._find(name)
        if export is None:
            return False
        self._channel.send(
            [
                struct.pack(">QH", export.size_bytes, self._flags()),
                b"" if self._no_zeroes else bytes(124),
            ]
        )
        self._agreed = export
        return True

    def _list(self, data: bytes) -> None:
        _must_be_empty(data)
        for export in self._exports.values():
            described = nbd.counted(export.name) + export.export.description.encode()
            self._reply(nbd.OPT_LIST, nbd.REP_SERVER, described)

    def _inform(self, option: int, data: bytes) -> None:
        name, at = _string(data, 0)
        (count,) = _unpack(">H", data, at)
        wanted = set(_unpack(f">{count}H", data, at + 2))
        if len(data) != at + 2 + 2 * count:
            raise _Refused(nbd.REP_ERR_INVALID, "The option is longer than what it says.")
        export = self._known(name)
        infos = [struct.pack(">HQH", nbd.INFO_EXPORT, export.size_bytes, self._flags())]
        if nbd.INFO_NAME in wanted:
            infos.append(struct.pack(">H", nbd.INFO_NAME) + export.name)
        if nbd.INFO_DESCRIPTION in wanted and export.export.description:
            said = export.export.description.encode()
            infos.append(struct.pack(">H", nbd.INFO_DESCRIPTION) + said)
        infos.append(
            struct.pack(
                ">HIII",
                nbd.INFO_BLOCK_SIZE,
                nbd.MINIMUM_BLOCK_BYTES,
                nbd.PREFERRED_BLOCK_BYTES,
                nbd.MAX_PAYLOAD_BYTES,
            )
        )
        for info in infos:
            self._reply(option, nbd.REP_INFO, info)
        if option == nbd.OPT_GO:
            self._agreed = export

    def _meta_contexts(self, option: int, data: bytes) -> None:
        choosing = option == nbd.OPT_SET_META_CONTEXT
        if choosing:
            self._contexts, self._contexts_of = [], None
        if not self._structured:
            raise _Refused(nbd.REP_ERR_INVALID, "Agree on structured replies first.")
        name, at = _string(data, 0)
        (count,) = _unpack(">I", data, at)
        at += 4
        queries = []
        for _ in range(count):
            query, at = _string(data, at)
            queries.append(query.decode(errors="replace"))
        if at != len(data):
            raise _Refused(nbd.REP_ERR_INVALID, "The option is longer than what it says.")
        export = self._known(name)
        if choosing:
            asked = set(queries)
            found = [each for each in export.context_names if each in asked]
            self._contexts, self._contexts_of = found, export
        else:
            found = listed(export.context_names, queries)
        for number, context in enumerate(found, 1):
            self._reply(
                option,
                nbd.REP_META_CONTEXT,
                struct.pack(">I", number if choosing else 0) + context.encode(),
            )

    def _flags(self) -> int:
        return _FLAGS | (nbd.FLAG_SEND_DF if self._structured else 0)

    def _find(self, name: bytes) -> Served | None:
        """The empty name is that of the only export, where there is one only."""
        if not name and len(self._exports) == 1:
            return next(iter(self._exports.values()))
        return self._exports.get(name)

    def _known(self, name: bytes) -> Served:
        export = self._find(name)
        if export is None:
            raise _Refused(nbd.REP_ERR_UNKNOWN, "No such export is served here; list them.")
        return export


def _must_be_empty(data: bytes) -> None:
    if data:
        raise _Refused(nbd.REP_ERR_INVALID, "This option takes no data.")


def _unpack(form: str, data: bytes, at: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(form, data, at)
    except struct.error:
        raise _Refused(nbd.REP_ERR_INVALID, "The option is shorter than what it says.") from None


def _string(data: bytes, at: int) -> tuple[bytes, int]:
    """A string behind its length, and where it ends."""
    (length,) = _unpack(">I", data, at)
    end = at + 4 + length
    if end > len(data) or length > nbd.MAX_STRING_BYTES:
        raise _Refused(
            nbd.REP_ERR_INVALID, "A string is longer than the option or than 4096 bytes."
        )
    return data[at + 4 : end], end
