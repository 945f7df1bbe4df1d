"""libiscsi.so.7's functions and structures, as declared in iscsi.h and scsi-lowlevel.h (1.19)."""

import ctypes
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_uint32, c_uint64, c_void_p
from functools import cache

from atoll_lab.iscsi.errors import IscsiError

DISCOVERY_SESSION, NORMAL_SESSION = 1, 2


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

_TASK = POINTER(Task)
_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "iscsi_create_context": (c_void_p, [c_char_p]),
    "iscsi_destroy_context": (c_int, [c_void_p]),
    "iscsi_set_targetname": (c_int, [c_void_p, c_char_p]),
    "iscsi_set_session_type": (c_int, [c_void_p, c_int]),
    "iscsi_set_reconnect_max_retries": (None, [c_void_p, c_int]),
    "iscsi_set_timeout": (c_int, [c_void_p, c_int]),
    "iscsi_set_log_level": (None, [c_void_p, c_int]),
    "iscsi_connect_sync": (c_int, [c_void_p, c_char_p]),
    "iscsi_login_sync": (c_int, [c_void_p]),
    "iscsi_full_connect_sync": (c_int, [c_void_p, c_char_p, c_int]),
    "iscsi_logout_sync": (c_int, [c_void_p]),
    "iscsi_disconnect": (c_int, [c_void_p]),
    "iscsi_get_error": (c_char_p, [c_void_p]),
    "iscsi_discovery_sync": (POINTER(DiscoveryAddress), [c_void_p]),
    "iscsi_free_discovery_data": (None, [c_void_p, POINTER(DiscoveryAddress)]),
    "iscsi_inquiry_sync": (_TASK, [c_void_p, *[c_int] * 4]),
    "iscsi_readcapacity16_sync": (_TASK, [c_void_p, c_int]),
    "iscsi_read16_sync": (_TASK, [c_void_p, c_int, c_uint64, c_uint32, *[c_int] * 6]),
    "iscsi_write16_sync": (_TASK, [c_void_p, c_int, c_uint64, c_char_p, c_uint32, *[c_int] * 6]),
    "iscsi_synchronizecache16_sync": (_TASK, [c_void_p, c_int, c_uint64, c_uint32, c_int, c_int]),
    "iscsi_unmap_sync": (_TASK, [c_void_p, c_int, c_int, c_int, POINTER(UnmapRange), c_int]),
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
