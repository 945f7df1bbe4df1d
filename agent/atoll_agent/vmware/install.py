"""Installs the script that VMware Tools runs around a quiesced snapshot."""

import sys
from pathlib import Path

from atoll_agent.errors import ConfigError

# VMware Tools runs what lies here in the order of names, and thaws in reverse.
SCRIPT = Path("etc/vmware-tools/backupScripts.d/50-atoll")

_TEXT = """#!/bin/sh
# Installed by `atoll-agent install-vmware-script`: holds databases while VMware Tools
# quiesces this guest. Whatever goes wrong, the snapshot goes on.
agent={agent}
[ -r "$agent" ] || exit 0
/usr/bin/python3 -B "$agent" vmware "$1"
exit 0
"""


def install_script(root: Path, agent: Path) -> Path:
    """Write the script under `root` and return where; the same again changes nothing.

    `agent` is the agent's file as the guest will see it. Raises ConfigError.
    """
    if not agent.is_absolute() or not str(agent).isprintable() or set("'\"$`\\ ") & set(str(agent)):
        raise ConfigError(f"{agent} cannot be the agent's path in a script; install it elsewhere.")
    path = root / SCRIPT
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not in the same directory, where VMware Tools would run it.
        beside = path.parent.parent / f".{path.name}.new"
        beside.write_text(_TEXT.format(agent=agent))
        beside.chmod(0o755)
        beside.rename(path)
    except OSError as error:
        raise ConfigError(f"Cannot write {path}: {error.strerror}.") from error
    return path


def remove_script(root: Path) -> None:
    """Remove the script; absent is success. Raises ConfigError."""
    try:
        (root / SCRIPT).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"Cannot remove {root / SCRIPT}: {error.strerror}.") from error


def own_file() -> Path:
    """The file this agent runs from; ConfigError when it is not the one file it is shipped as."""
    path = Path(sys.argv[0]).resolve()
    if path.suffix != ".pyz":
        raise ConfigError("Run this from the agent's file, /usr/lib/atoll/atoll-agent.pyz.")
    return path
