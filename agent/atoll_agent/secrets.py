"""Passwords of applications, read from files that only root can read.

An entry in `agent.json` names such a file with `password_file`. What is in it
is passed on over pipes and sockets: never in a command line, a message or a
log, and in an environment only to a client that takes it in no other way.
"""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from atoll_agent.application import ApplicationConfig
from atoll_agent.errors import ApplicationError

PASSWORD_KEY = "password_file"  # noqa: S105 - the name of an option

_MAX_BYTES = 4096


@dataclass(frozen=True)
class Secret:
    """A password that does not show itself when it is printed; `reveal` gives it away."""

    _text: str = field(repr=False)

    def reveal(self) -> str:
        """The password itself, for the connection to its server and nothing else."""
        return self._text

    def __str__(self) -> str:
        return "(secret)"


def password_of(entry: ApplicationConfig | None) -> Secret | None:
    """The password an entry names with `password_file`; None when it names none.

    Raises ApplicationError as `read_secret` does.
    """
    path = entry.text(PASSWORD_KEY) if entry is not None else None
    return None if path is None else read_secret(Path(path))


def read_secret(path: Path) -> Secret:
    """The first line of a file that belongs to root (or the agent's user) and is private to it.

    Raises ApplicationError, which names the file and says what is wrong with it.
    """
    if not path.is_absolute():
        raise ApplicationError(f"{PASSWORD_KEY} {path} must be an absolute path")
    try:
        # A pipe would make the open wait, a link could be changed by whoever owns it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ApplicationError(
            f"{PASSWORD_KEY} {path} cannot be read: {os.strerror(error.errno or 0)}"
        ) from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ApplicationError(f"{PASSWORD_KEY} {path} is not a regular file")
        if found.st_uid not in {0, os.geteuid()} or stat.S_IMODE(found.st_mode) & 0o077:
            raise ApplicationError(
                f"{PASSWORD_KEY} {path} must belong to root and be readable by root alone "
                f"(chown root {path}; chmod 600 {path})"
            )
        line = os.read(descriptor, _MAX_BYTES + 1).split(b"\n", 1)[0].removesuffix(b"\r")
    finally:
        os.close(descriptor)
    if not line or len(line) > _MAX_BYTES:
        raise ApplicationError(f"{PASSWORD_KEY} {path} must hold the password in its first line")
    try:
        return Secret(line.decode())
    except UnicodeDecodeError:
        # Without its cause, which would quote the password.
        raise ApplicationError(f"{PASSWORD_KEY} {path} is not UTF-8 text") from None
