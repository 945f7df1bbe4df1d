"""libiscsi.so.7's functions and structures, as declared in iscsi.h and scsi-lowlevel.h (1.19).

Of its two ways only the asynchronous one is used. The `…_sync` functions keep their state on the
stack and give up when a signal interrupts them; the command is still queued then, and its end is
written to where the state was.
"""

import ctypes
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_uint32, c_uint64, c_void_p
from functools import cache

from atoll.storage.initiator.errors import IscsiError

DISCOVERY_SESSION, NORMAL_SESSION = 1, 2

GOOD = 0
CHECK_CONDITION = 2
BUSY = 0x08
TASK_SET_FULL = 0x28
OWN_STATUS = 0x0F000000
"""libiscsi's own outcomes (cancelled, error, timeout) are above SCSI's one-byte status."""

UNDERFLOW = 1
"""SCSI_RESIDUAL_UNDERFLOW."""


class Sense(ctypes.Structure):
    """struct scsi_sense, as far as it is read."""

    _fields_ = (
        ("error_type", c_ubyte),
        ("key", c_int),
        ("ascq", c_int),
        ("flags", c_uint),
    )


class DataIn(ctypes.Structure):
    """struct scsi_data."""

    _fields_ = (("size", c_int), ("data", POINTER(c_ubyte)))


class Task(ctypes.Structure):
    """struct scsi_task up to datain; only ever used behind a pointer libiscsi gave."""

    _fields_ = (
        ("status", c_int),
        ("cdb_size", c_int),
        ("direction", c_int),
        ("transfer_length", c_int),
        ("cdb", c_ubyte * 16),
        ("residual_status", c_int),
        ("residual", c_size_t),
        ("sense", Sense),
        ("datain", DataIn),
    )


class IoVector(ctypes.Structure):
    """struct scsi_iovec."""

    _fields_ = (("base", c_void_p), ("length", c_size_t))


class UnmapRange(ctypes.Structure):
    """struct unmap_list."""

    _fields_ = (("lba", c_uint64), ("blocks", c_uint32))


class TargetPortal(ctypes.Structure):
    """struct iscsi_target_portal."""


class DiscoveryAddress(ctypes.Structure):
    """struct iscsi_discovery_address."""


TargetPortal._fields_ = (("next", POINTER(TargetPortal)), ("portal", c_char_p))
DiscoveryAddress._fields_ = (
    ("next", POINTER(DiscoveryAddress)),
    ("target_name", c_char_p),
    ("portals", POINTER(TargetPortal)),
)

COMMAND_CALLBACK = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_void_p, c_void_p)
"""iscsi_command_cb: context, status, command data, private data."""

_TASK = POINTER(Task)
_THEN: list[object] = [COMMAND_CALLBACK, c_void_p]
_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "iscsi_create_context": (c_void_p, [c_char_p]),
    "iscsi_destroy_context": (c_int, [c_void_p]),
    "iscsi_set_targetname": (c_int, [c_void_p, c_char_p]),
    "iscsi_set_session_type": (c_int, [c_void_p, c_int]),
    "iscsi_set_initiator_username_pwd": (c_int, [c_void_p, c_char_p, c_char_p]),
    "iscsi_set_target_username_pwd": (c_int, [c_void_p, c_char_p, c_char_p]),
    "iscsi_set_noautoreconnect": (None, [c_void_p, c_int]),
    "iscsi_set_timeout": (c_int, [c_void_p, c_int]),
    "iscsi_set_tcp_syncnt": (None, [c_void_p, c_int]),
    "iscsi_get_error": (c_char_p, [c_void_p]),
    "iscsi_get_fd": (c_int, [c_void_p]),
    "iscsi_which_events": (c_int, [c_void_p]),
    "iscsi_service": (c_int, [c_void_p, c_int]),
    "iscsi_connect_async": (c_int, [c_void_p, c_char_p, *_THEN]),
    "iscsi_login_async": (c_int, [c_void_p, *_THEN]),
    "iscsi_full_connect_async": (c_int, [c_void_p, c_char_p, c_int, *_THEN]),
    "iscsi_logout_async": (c_int, [c_void_p, *_THEN]),
    "iscsi_discovery_async": (c_int, [c_void_p, *_THEN]),
    "iscsi_inquiry_task": (_TASK, [c_void_p, *[c_int] * 4, *_THEN]),
    "iscsi_readcapacity16_task": (_TASK, [c_void_p, c_int, *_THEN]),
    "iscsi_reportluns_task": (_TASK, [c_void_p, c_int, c_int, *_THEN]),
    "iscsi_get_lba_status_task": (_TASK, [c_void_p, c_int, c_uint64, c_uint32, *_THEN]),
    "iscsi_read16_iov_task": (
        _TASK,
        [c_void_p, c_int, c_uint64, c_uint32, *[c_int] * 6, *_THEN, POINTER(IoVector), c_int],
    ),
    "iscsi_write16_task": (
        _TASK,
        [c_void_p, c_int, c_uint64, c_void_p, c_uint32, *[c_int] * 6, *_THEN],
    ),
    "iscsi_synchronizecache16_task": (
        _TASK,
        [c_void_p, c_int, c_uint64, c_uint32, c_int, c_int, *_THEN],
    ),
    "iscsi_unmap_task": (_TASK, [c_void_p, *[c_int] * 3, POINTER(UnmapRange), c_int, *_THEN]),
    "scsi_free_scsi_task": (None, [_TASK]),
}


@cache
def library() -> ctypes.CDLL:
    """The loaded library; IscsiError when it is not installed."""
    try:
        loaded = ctypes.CDLL("libiscsi.so.7")
    except OSError as error:
        raise IscsiError(
            "libiscsi.so.7 is not installed; install the package libiscsi7."
        ) from error
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype = result
        function.argtypes = arguments
    return loaded
