r"""The volumes of a Windows guest, by the Win32 API (fileapi.h).

A volume is named by the first path at which it is mounted, `C:\` or a folder,
as diskshadow wants it.
"""

import ctypes
from collections.abc import Iterator
from typing import Any

SNAPSHOT_FILE_SYSTEMS = frozenset({"NTFS", "ReFS"})
"""Of which VSS' system provider makes shadow copies."""

_DRIVE_FIXED = 3
_GENERIC_READ, _GENERIC_WRITE = 0x80000000, 0x40000000
_SHARE_ALL = 0x7
_OPEN_EXISTING = 3
_MAX_PATH = 32768
_INVALID_HANDLE = ctypes.c_void_p(-1).value


def kernel32() -> Any:
    """The API's library."""
    library = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]
    for name in ("FindFirstVolumeW", "CreateFileW"):
        getattr(library, name).restype = ctypes.c_void_p
    return library


def fixed_volumes() -> list[str]:
    """Where the fixed volumes are mounted of which shadow copies can be made, in order."""
    api = kernel32()
    return sorted(filter(None, (_path_of(api, name) for name in _volume_names(api))))


def flush_volume(path: str) -> None:
    r"""Write what the system still keeps in memory of a volume (`C:\`) to its disk. Raises OSError."""
    api = kernel32()
    handle = api.CreateFileW(
        f"\\\\.\\{path.rstrip(chr(92))}",
        _GENERIC_READ | _GENERIC_WRITE,
        _SHARE_ALL,
        None,
        _OPEN_EXISTING,
        0,
        None,
    )
    if handle == _INVALID_HANDLE:
        raise _last_error(path)
    try:
        if not api.FlushFileBuffers(ctypes.c_void_p(handle)):
            raise _last_error(path)
    finally:
        api.CloseHandle(ctypes.c_void_p(handle))


def _volume_names(api: Any) -> Iterator[str]:
    buffer = ctypes.create_unicode_buffer(_MAX_PATH)
    handle = api.FindFirstVolumeW(buffer, _MAX_PATH)
    if handle == _INVALID_HANDLE:
        return
    try:
        yield buffer.value
        while api.FindNextVolumeW(ctypes.c_void_p(handle), buffer, _MAX_PATH):
            yield buffer.value
    finally:
        api.FindVolumeClose(ctypes.c_void_p(handle))


def _path_of(api: Any, volume: str) -> str:
    """The volume's first path; empty for one that is not fixed, not mounted or of another kind."""
    if api.GetDriveTypeW(volume) != _DRIVE_FIXED:
        return ""
    kind = ctypes.create_unicode_buffer(64)
    if not api.GetVolumeInformationW(volume, None, 0, None, None, None, kind, 64):
        return ""
    if kind.value not in SNAPSHOT_FILE_SYSTEMS:
        return ""
    paths = ctypes.create_unicode_buffer(_MAX_PATH)
    length = ctypes.c_uint32()
    if not api.GetVolumePathNamesForVolumeNameW(volume, paths, _MAX_PATH, ctypes.byref(length)):
        return ""
    # Several, each ended by a null; the first is enough.
    return paths.value


def _last_error(path: str) -> OSError:
    number = ctypes.get_last_error()  # type: ignore[attr-defined]
    return OSError(number, f"Windows error {number}", path)
