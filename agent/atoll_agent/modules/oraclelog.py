"""What an Oracle instance wrote to its alert log about the recovery of its last start.

The text form (`alert_SID.log`) says `Starting ORACLE instance`, then for an
instance that was not shut down cleanly `Beginning crash recovery of 1 threads`
and `Completed crash recovery at` with ` 12 data blocks read, 9 data blocks
written, 40 redo k-bytes read` (MOS 1541063.1 shows one).
"""

import re
from dataclasses import dataclass
from pathlib import Path

_MAX_BYTES = 4 << 20
_START = "Starting ORACLE instance"
_REDO = re.compile(r"(\d+) redo k-bytes read")
_REPAIRS = ("Corrupt block", "Media Recovery Start", "ORA-01578")


@dataclass(frozen=True)
class Recovery:
    """How much redo the last start applied, and whether blocks had to be mended beyond that."""

    replayed_bytes: int
    repaired: bool


def judge_alert_log(path: Path) -> Recovery | None:
    """The last start's recovery; None when the log or a start in it cannot be found."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - _MAX_BYTES))
            text = stream.read(_MAX_BYTES).decode(errors="replace")
    except OSError:
        return None
    if _START not in text:
        return None
    since = text[text.rindex(_START) :]
    return Recovery(
        replayed_bytes=sum(int(kilobytes) << 10 for kilobytes in _REDO.findall(since)),
        repaired=any(sign in since for sign in _REPAIRS),
    )
