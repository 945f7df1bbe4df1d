"""What a server wrote to its log since it last started, wherever its standard error leads."""

import os
import subprocess
from pathlib import Path

_MAX_BYTES = 1 << 20


def log_since_start(pid: int, start_mark: str) -> str | None:
    """The log of the running server `pid` from the last line containing `start_mark`.

    Servers log to a file or to a pipe of the journal; the link
    `/proc/PID/fd/2` says which. None when the log cannot be found.
    """
    try:
        target = os.readlink(f"/proc/{pid}/fd/2")  # noqa: PTH115 - a magic link, not a path
    except OSError:
        return None
    if target.startswith(("socket:", "pipe:")):
        text = _journal(pid)
    else:
        text = _tail(Path(target))
    if text is None or start_mark not in text:
        return None
    start = text.rindex(start_mark)
    return text[text.rfind("\n", 0, start) + 1 :]


def _tail(path: Path) -> str | None:
    try:
        if not path.is_file():
            return None
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - _MAX_BYTES))
            return stream.read(_MAX_BYTES).decode(errors="replace")
    except OSError:
        return None


def _journal(pid: int) -> str | None:
    try:
        found = subprocess.run(
            ["journalctl", f"_PID={pid}", "-b", "-o", "cat", "--no-pager", "-n", "5000"],
            capture_output=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.decode(errors="replace") or None
