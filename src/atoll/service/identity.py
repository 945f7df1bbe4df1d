"""What tells one site's snapshots, clones and VMware snapshots from those of another."""

import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from atoll.model.errors import ConfigurationError

_FILE = "site"
_FORM = re.compile(r"[0-9a-f]{8}\n?")


def site_identity(directory: Path, key_id: Callable[[], str] | None) -> str:
    """Eight hex digits, the same for ever: the beginning of the repository's key id.

    A site that has no repository, `key_id` None, makes up its own on first use, in a file of its
    state directory, and keeps it when it gets one. ConfigurationError when that file is damaged or
    cannot be written.
    """
    path = directory / _FILE
    try:
        if not path.exists():
            if key_id is not None:
                return key_id()[:8]
            _make(path)
        text = path.read_text()
    except OSError as error:
        raise ConfigurationError(
            f"The site's identity {path} cannot be kept: {error.strerror}."
        ) from error
    if not _FORM.fullmatch(text):
        raise ConfigurationError(
            f"{path} does not hold the eight hex digits that mark this site's snapshots; restore it "
            "from a backup, or read them off a snapshot's name (capture-atoll-XXXXXXXX-...)."
        )
    return text.strip()


def _make(path: Path) -> None:
    """Whole or not at all, and once, whoever else does it at this moment."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f"{_FILE}.{os.getpid()}.tmp")
    with temporary.open("w") as file:
        file.write(f"{secrets.token_hex(4)}\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
