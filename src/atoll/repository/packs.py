"""Packs: many sealed chunks in one object, and a sealed footer that lists them."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from atoll.model.errors import RepositoryDamagedError
from atoll.repository.chunks import NAME_BYTES, PackedChunk
from atoll.repository.keys import MasterKey
from atoll.repository.sealing import magic, new_name
from atoll.repository.store import Buffer, ObjectStore

PACKS = "packs/"
PACK_BYTES = 32 << 20
HEADER_BYTES = 24
_MAGIC = magic("PCK")
_ROW = struct.Struct("<32sIIIB3x")
_TRAILER = struct.Struct("<I4s")
_TRAILER_MAGIC = b"KCPA"
_FOOTER_NONCE = b"\xff" * 12
_TAG_BYTES = 16


class PackEntry(NamedTuple):
    """A chunk in a pack: the `number`-th, `sealed_bytes` at `offset`, `plain_bytes` inside."""

    name: bytes
    number: int
    offset: int
    sealed_bytes: int
    plain_bytes: int
    codec: int


@dataclass(frozen=True, slots=True)
class PackListing:
    """What a pack holds: its name (32 hex digits), its size in bytes, its chunks in order."""

    name: str
    size_bytes: int
    entries: tuple[PackEntry, ...]


def object_name(pack: str) -> str:
    """Packs are spread over 256 folders, which keeps each folder small."""
    return f"{PACKS}{pack[:2]}/{pack}"


class PackKeys:
    """The key of each pack, and the rule by which no nonce is used twice under it.

    Chunk n of a pack is sealed with nonce n, the footer with all ones.
    """

    def __init__(self, master: MasterKey) -> None:
        self._master = master
        self._recent: dict[str, AESGCM] = {}

    def of(self, pack: str) -> AESGCM:
        """The pack's cipher; making one costs a few microseconds, so recent ones are kept."""
        cipher = self._recent.get(pack)
        if cipher is None:
            if len(self._recent) > 4096:
                self._recent = {}
            cipher = AESGCM(self._master.derive("PCK", bytes.fromhex(pack)))
            self._recent[pack] = cipher
        return cipher

    def open_chunk(self, pack: str, entry: PackEntry, sealed: Buffer) -> PackedChunk:
        """Unseal one chunk; RepositoryDamagedError if a bit differs."""
        try:
            body = self.of(pack).decrypt(_nonce(entry.number), sealed, entry.name)
        except InvalidTag as error:
            raise RepositoryDamagedError(
                f"Chunk {entry.name.hex()[:16]} at byte {entry.offset} of {object_name(pack)} is "
                "damaged; verify the repository to learn what that touches."
            ) from error
        return PackedChunk(entry.codec, entry.plain_bytes, body)


class OpenPack:
    """A pack being filled, in memory. Not thread-safe."""

    def __init__(self, keys: PackKeys) -> None:
        self.name = new_name()
        self._cipher = keys.of(self.name)
        self._header = _MAGIC + bytes.fromhex(self.name)
        self._parts: list[bytes] = [self._header]
        self._entries: list[PackEntry] = []
        self.size_bytes = HEADER_BYTES

    def add(self, name: bytes, chunk: PackedChunk) -> PackEntry:
        """Seal a chunk and append it."""
        number = len(self._entries)
        sealed = self._cipher.encrypt(_nonce(number), chunk.body, name)
        entry = PackEntry(
            name, number, self.size_bytes, len(sealed), chunk.plain_bytes, chunk.codec
        )
        self._parts.append(sealed)
        self._entries.append(entry)
        self.size_bytes += len(sealed)
        return entry

    @property
    def empty(self) -> bool:
        """Whether nothing was added."""
        return not self._entries

    def finish(self) -> tuple[PackListing, list[bytes]]:
        """The listing, and the object's bytes in parts. The pack takes no more chunks."""
        rows = b"".join(
            _ROW.pack(entry.name, entry.offset, entry.sealed_bytes, entry.plain_bytes, entry.codec)
            for entry in self._entries
        )
        footer = self._cipher.encrypt(_FOOTER_NONCE, rows, self._header)
        trailer = _TRAILER.pack(len(footer), _TRAILER_MAGIC)
        size = self.size_bytes + len(footer) + len(trailer)
        listing = PackListing(self.name, size, tuple(self._entries))
        return listing, [*self._parts, footer, trailer]


def put_pack(store: ObjectStore, pack: OpenPack) -> PackListing:
    """Write a pack that takes no more chunks."""
    listing, parts = pack.finish()
    store.put(object_name(listing.name), parts)
    return listing


def read_listing(store: ObjectStore, keys: PackKeys, pack: str, size_bytes: int) -> PackListing:
    """What a pack says it holds; RepositoryDamagedError if header, footer or size do not fit."""
    name = object_name(pack)
    header = store.get_range(name, 0, HEADER_BYTES)
    tail = min(size_bytes, 64 << 10)
    end = store.get_range(name, size_bytes - tail, tail)
    need = footer_bytes(end) + _TRAILER.size
    if need > len(end) and need <= size_bytes - HEADER_BYTES:
        end = store.get_range(name, size_bytes - need, need)
    return parse_listing(keys, pack, size_bytes, header, end)


def footer_bytes(end: Buffer) -> int:
    """Length of the footer by the pack's last bytes; 0 if they are no trailer."""
    if len(end) < _TRAILER.size:
        return 0
    length, mark = _TRAILER.unpack(end[-_TRAILER.size :])
    return int(length) if mark == _TRAILER_MAGIC else 0


def fits_form(pack: str, data: Buffer) -> bool:
    """Whether beginning, end and size of a pack can be right, which is all to be told without the key."""
    footer = footer_bytes(data)
    rows = (footer - _TAG_BYTES) // _ROW.size
    # A chunk of one byte takes a tag too.
    smallest = HEADER_BYTES + rows * (_TAG_BYTES + 1) + footer + _TRAILER.size
    return (
        bytes(data[:HEADER_BYTES]) == _MAGIC + bytes.fromhex(pack)
        and rows > 0
        and footer == rows * _ROW.size + _TAG_BYTES
        and len(data) >= smallest
    )


def parse_listing(
    keys: PackKeys, pack: str, size_bytes: int, header: Buffer, end: Buffer
) -> PackListing:
    """The listing from a pack's first 24 bytes and an end that holds the whole footer."""
    if bytes(header) != _MAGIC + bytes.fromhex(pack):
        raise _damaged(pack, "has a damaged header")
    length = footer_bytes(end)
    footer = bytes(end[len(end) - _TRAILER.size - length : len(end) - _TRAILER.size])
    if length <= _TAG_BYTES or len(footer) != length:
        raise _damaged(pack, "has a damaged end or was cut short")
    try:
        rows = keys.of(pack).decrypt(_FOOTER_NONCE, footer, bytes(header))
    except InvalidTag as error:
        raise _damaged(pack, "has a damaged footer") from error
    entries = []
    offset = HEADER_BYTES
    for number, row in enumerate(_ROW.iter_unpack(rows)):
        chunk, start, sealed, plain, codec = row
        if start != offset:
            raise _damaged(pack, "lists chunks that do not lie end to end")
        entries.append(PackEntry(chunk, number, start, sealed, plain, codec))
        offset += sealed
    if offset + length + _TRAILER.size != size_bytes:
        raise _damaged(pack, f"has {size_bytes} bytes, which is not what its footer says")
    return PackListing(pack, size_bytes, tuple(entries))


class PackCheck(NamedTuple):
    """A pack read back: what it should hold, which chunks are lost, and what is wrong with it."""

    entries: tuple[PackEntry, ...]
    lost: tuple[PackEntry, ...]
    problems: tuple[str, ...]


def check_pack(
    keys: PackKeys,
    pack: str,
    data: bytes,
    unpack: Callable[[bytes, PackedChunk], bytes],
    indexed: tuple[PackEntry, ...] | None,
) -> PackCheck:
    """Open every chunk of a whole pack; `indexed` is what the index says of it, if it does."""
    view = memoryview(data)
    problems = []
    listed: tuple[PackEntry, ...] | None = None
    try:
        listed = parse_listing(keys, pack, len(data), view[:HEADER_BYTES], view).entries
    except RepositoryDamagedError as error:
        problems.append(str(error))
    if listed is not None and indexed is not None and listed != indexed:
        problems.append("its footer lists other chunks than the index does")
    entries = indexed or listed or ()
    lost = []
    for entry in entries:
        sealed = view[entry.offset : entry.offset + entry.sealed_bytes]
        try:
            unpack(entry.name, keys.open_chunk(pack, entry, sealed))
        except RepositoryDamagedError:
            lost.append(entry)
    if lost:
        problems.append(
            f"{len(lost)} of its {len(entries)} chunks are damaged, the first at byte "
            f"{lost[0].offset}"
        )
    return PackCheck(entries, tuple(lost), tuple(problems))


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "little")


def _damaged(pack: str, what: str) -> RepositoryDamagedError:
    return RepositoryDamagedError(
        f"{object_name(pack)} {what}; verify the repository to learn what that touches."
    )


assert _ROW.size == NAME_BYTES + 16
