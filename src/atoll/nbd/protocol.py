"""The numbers and layouts of the NBD protocol that this server speaks.

Source: doc/proto.md of the NBD project (https://github.com/NetworkBlockDevice/nbd), whose section
each group names; everything is big-endian. The `qemu:dirty-bitmap:` contexts are those of QEMU's
docs/interop/nbd.rst. Extended headers are an experimental extension there and not spoken.
"""

import struct
from typing import Final

# "Newstyle negotiation", "Handshake flags", "Client flags"
INIT: Final = b"NBDMAGICIHAVEOPT"
OPTION_MAGIC: Final = b"IHAVEOPT"
OPTION: Final = struct.Struct(">8sII")
"""Magic, option, length of the data that follows."""
OPTION_REPLY: Final = struct.Struct(">QIII")
"""Magic, option, reply type, length of the data that follows."""
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
FIXED_NEWSTYLE: Final = 1
NO_ZEROES: Final = 2

# "Option types"
OPT_EXPORT_NAME: Final = 1
OPT_ABORT: Final = 2
OPT_LIST: Final = 3
OPT_STARTTLS: Final = 5
OPT_INFO: Final = 6
OPT_GO: Final = 7
OPT_STRUCTURED_REPLY: Final = 8
OPT_LIST_META_CONTEXT: Final = 9
OPT_SET_META_CONTEXT: Final = 10

# "Option reply types"
REP_ACK: Final = 1
REP_SERVER: Final = 2
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_ERR_UNSUP: Final = 1 << 31 | 1
REP_ERR_POLICY: Final = 1 << 31 | 2
REP_ERR_INVALID: Final = 1 << 31 | 3
REP_ERR_TLS_REQD: Final = 1 << 31 | 5
REP_ERR_UNKNOWN: Final = 1 << 31 | 6

INFO_EXPORT: Final = 0
INFO_NAME: Final = 1
INFO_DESCRIPTION: Final = 2
INFO_BLOCK_SIZE: Final = 3

# "Transmission flags"
FLAG_HAS_FLAGS: Final = 1
FLAG_READ_ONLY: Final = 1 << 1
FLAG_SEND_DF: Final = 1 << 7
FLAG_CAN_MULTI_CONN: Final = 1 << 8
FLAG_SEND_CACHE: Final = 1 << 10

# "Request message", "Request types", "Command flags"
REQUEST: Final = struct.Struct(">IHHQQI")
"""Magic, command flags, type, cookie, offset, length."""
REQUEST_MAGIC: Final = 0x25609513
CMD_READ: Final = 0
CMD_WRITE: Final = 1
CMD_DISC: Final = 2
CMD_FLUSH: Final = 3
CMD_TRIM: Final = 4
CMD_CACHE: Final = 5
CMD_WRITE_ZEROES: Final = 6
CMD_BLOCK_STATUS: Final = 7
CMD_FLAG_DF: Final = 1 << 2
CMD_FLAG_REQ_ONE: Final = 1 << 3

# "Simple reply message", "Structured reply chunk message", "Structured reply types"
SIMPLE_REPLY: Final = struct.Struct(">IIQ")
"""Magic, error, cookie."""
SIMPLE_REPLY_MAGIC: Final = 0x67446698
CHUNK: Final = struct.Struct(">IHHQI")
"""Magic, flags, type, cookie, length of the payload that follows."""
CHUNK_MAGIC: Final = 0x668E33EF
DATA_CHUNK: Final = struct.Struct(">IHHQIQ")
"""A chunk's header, and the offset with which the payload of content begins."""
HOLE_CHUNK: Final = struct.Struct(">IHHQIQI")
"""A whole chunk for a hole: header, offset, bytes of the hole."""
REPLY_FLAG_DONE: Final = 1
REPLY_NONE: Final = 0
REPLY_OFFSET_DATA: Final = 1
REPLY_OFFSET_HOLE: Final = 2
REPLY_BLOCK_STATUS: Final = 5
REPLY_ERROR: Final = 1 << 15 | 1
REPLY_ERROR_OFFSET: Final = 1 << 15 | 2

# "`base:allocation` metadata context"; QEMU's NBD_STATE_DIRTY
STATE_HOLE: Final = 1
STATE_ZERO: Final = 2
STATE_DIRTY: Final = 1

# "Error values"
EPERM: Final = 1
EIO: Final = 5
EINVAL: Final = 22
EOVERFLOW: Final = 75

# "Size constraints"
MINIMUM_BLOCK_BYTES: Final = 1
PREFERRED_BLOCK_BYTES: Final = 1 << 20
"""What clients then ask for at once: with less, waking each other costs more than the bytes."""
MAX_PAYLOAD_BYTES: Final = 32 << 20

MAX_STRING_BYTES: Final = 4096
"""The longest name, description or message ("Conventions")."""


def option_reply(option: int, kind: int, data: bytes = b"") -> bytes:
    """A whole reply to an option."""
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def counted(text: bytes) -> bytes:
    """A string behind its length in 32 bits."""
    return struct.pack(">I", len(text)) + text


def error_chunk(cookie: int, error: int, message: str, offset: int | None = None) -> bytes:
    """The last chunk of a reply that failed, with where it failed if that is known."""
    said = message.encode(errors="replace")[:MAX_STRING_BYTES]
    payload = struct.pack(">IH", error, len(said)) + said
    kind = REPLY_ERROR
    if offset is not None:
        kind = REPLY_ERROR_OFFSET
        payload += struct.pack(">Q", offset)
    return CHUNK.pack(CHUNK_MAGIC, REPLY_FLAG_DONE, kind, cookie, len(payload)) + payload
