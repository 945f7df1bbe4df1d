"""The content of a btrfs file: extents, inline or not, compressed or not.

Sources: the kernel's `fs/btrfs/compression.c` and `fs/btrfs/lzo.c`.
"""

import io
import struct
import zlib
from collections.abc import Iterator

import zstandard
from dissect.util.compression import lzo

from atoll.filesystems.btrfs_layout import Layout, Root, damaged
from atoll.filesystems.interface import Data, Placed
from atoll.model.errors import UnsupportedFormatError

EXTENT_DATA = 108
_INLINE, _REGULAR, _PREALLOCATED = range(3)
_NONE, _ZLIB, _LZO, _ZSTD = range(4)
_HEAD = struct.Struct("<QQBBHB")
_PLACE = struct.Struct("<QQQQ")
_MAX_COMPRESSED_BYTES = 1 << 20  # the kernel compresses 128 KiB at a time
_PIECE_BYTES = 1 << 20


def layout_of(layout: Layout, root: Root, inode: int, size: int) -> Iterator[Placed | Data]:
    """Where a file's bytes lie, ascending; those compressed or in the tree itself come along."""
    end = 0
    last: tuple[int, bytes] = (0, b"")
    for (_, _, offset), item in layout.items(
        root, (inode, EXTENT_DATA, 0), (inode, EXTENT_DATA, 1 << 64)
    ):
        if offset >= size:
            return
        if len(item) < _HEAD.size:
            raise damaged(f"inode {inode} has an extent that is none")
        _, plain_bytes, compression, encrypted, other, kind = _HEAD.unpack_from(item)
        if encrypted or other:
            raise UnsupportedFormatError(
                f"Inode {inode} is encrypted, so its content cannot be read; restore the whole disk"
                " instead."
            )
        if offset < end:
            raise damaged(f"inode {inode} has two extents at one place")
        if kind == _INLINE:
            content = item[_HEAD.size :]
            if compression:
                content = _plain(layout, compression, content, plain_bytes)
            content = content[: size - offset]
            end = offset + len(content)
            if content:
                yield Data(offset, content)
            continue
        if len(item) < _HEAD.size + _PLACE.size or kind not in (_REGULAR, _PREALLOCATED):
            raise damaged(f"inode {inode} has an extent that is none")
        at, stored, skipped, length = _PLACE.unpack_from(item, _HEAD.size)
        end = offset + length
        length = min(length, size - offset)
        if not at or kind == _PREALLOCATED or not length:
            continue
        if not compression:
            if skipped + length > stored:
                raise damaged(f"inode {inode} has an extent outside its place")
            yield from _placed(layout, offset, at + skipped, length)
            continue
        if stored > _MAX_COMPRESSED_BYTES or skipped + length > plain_bytes:
            raise damaged(f"inode {inode} has an extent outside its place")
        if last[0] != at:  # what was overwritten in part is there in several pieces
            last = at, _plain(layout, compression, layout.read(at, stored), plain_bytes)
        content = last[1][skipped : skipped + length]
        if content:
            yield Data(offset, content)


def content_of(layout: Layout, root: Root, inode: int, size: int) -> Iterator[Data]:
    """The bytes of a file, ascending, without holes, in pieces of at most 1 MiB."""
    for found in layout_of(layout, root, inode, size):
        if isinstance(found, Data):
            yield found
            continue
        for done in range(0, found.length, _PIECE_BYTES):
            count = min(_PIECE_BYTES, found.length - done)
            yield Data(found.offset + done, layout.blocks.read(found.at + done, count))


def _placed(layout: Layout, offset: int, logical: int, length: int) -> Iterator[Placed]:
    for at, count in layout.places(logical, length):
        yield Placed(offset, count, at)
        offset += count


def _plain(layout: Layout, compression: int, raw: bytes, size: int) -> bytes:
    """What compressed bytes stand for, `size` of them, padded with zeros as the kernel does."""
    if size > _MAX_COMPRESSED_BYTES:
        raise damaged("an extent is larger than can be compressed")
    try:
        if compression == _ZLIB:
            plain = zlib.decompressobj().decompress(raw, size)
        elif compression == _ZSTD:
            with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(raw)) as reader:
                plain = reader.read(size)
        elif compression == _LZO:
            plain = _lzo(raw, size, layout.sector_size)
        else:
            raise UnsupportedFormatError(
                "A file is compressed in a way that Atoll does not know; restore the whole disk"
                " instead."
            )
    except (zlib.error, zstandard.ZstdError, ValueError, IndexError) as error:
        raise damaged("compressed content is not what compression leaves") from error
    return plain.ljust(size, b"\0")


def _lzo(raw: bytes, size: int, sector: int) -> bytes:
    """Segments of a sector each; the length before one never crosses the end of a sector."""
    total = min(int.from_bytes(raw[:4], "little"), len(raw))
    plain = bytearray()
    at = 4
    while at + 4 <= total and len(plain) < size:
        if sector - at % sector < 4:
            at += sector - at % sector
            continue
        length = int.from_bytes(raw[at : at + 4], "little")
        at += 4
        if not 0 < length <= total - at:
            raise damaged("compressed content is not what compression leaves")
        piece = _lzo_segment(raw[at : at + length], sector)
        if len(piece) > sector:
            raise damaged("compressed content is not what compression leaves")
        plain += piece
        at += length
    return bytes(plain[:size])


def _lzo_segment(raw: bytes, sector: int) -> bytes:
    try:
        return bytes(lzo.decompress(raw, False, sector))
    except BaseException as error:
        # What the library does with a wrong distance is a panic of Rust, which is no Exception.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise damaged("compressed content is not what compression leaves") from error
        raise
