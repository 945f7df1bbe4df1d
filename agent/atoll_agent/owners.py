"""Running a program as the user who owns a server, which is how servers know their own people."""

import os
from collections.abc import Mapping
from typing import Any

from atoll_agent.errors import ApplicationError


def as_owner(owner: str | None) -> Mapping[str, Any]:
    """The arguments of `subprocess.Popen` that make a program run as `owner`; none without one.

    With the owner's supplementary groups: Oracle and Db2 take who belongs to a
    group of theirs for an administrator. Raises ApplicationError when there is
    no such user.
    """
    if owner is None or os.name != "posix" or os.geteuid() != 0:
        return {}
    import pwd

    try:
        found = pwd.getpwnam(owner)
    except KeyError as error:
        raise ApplicationError(f"there is no user {owner} to ask the server as") from error
    return {
        "user": found.pw_uid,
        "group": found.pw_gid,
        "extra_groups": os.getgrouplist(owner, found.pw_gid),
    }


def home_of(owner: str | None) -> str:
    """The owner's home directory; `/` without an owner or when there is no such user."""
    if owner is None or os.name != "posix":
        return "/"
    import pwd

    try:
        return pwd.getpwnam(owner).pw_dir
    except KeyError:
        return "/"


def owner_of(pid: int) -> str | None:
    """The name of the user a process runs as; None when it is gone or the user has no name."""
    import pwd

    try:
        return pwd.getpwuid(os.stat(f"/proc/{pid}").st_uid).pw_name  # noqa: PTH116
    except (OSError, KeyError):
        return None
