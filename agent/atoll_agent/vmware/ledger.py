"""What of holds must outlive the process that holds: their count, one under way, the last account.

In /run, which is memory and is empty after a start, as is what was held before it.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from atoll_agent.clock import boottime

DIRECTORY = Path("/run/atoll-agent")

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_ACCOUNT = "vmware-account.json"
_LEDGER = "vmware-holds.json"


@dataclass(frozen=True)
class UnderWay:
    """A hold that VMware Tools has begun and not ended. `dead_man_at` is by the boot clock."""

    number: int
    began_at: float
    dead_man_at: float

    @property
    def dead_man_remaining(self) -> float:
        """Seconds until the file systems are thawed in VMware Tools' place, never below zero."""
        return max(0.0, self.dead_man_at - boottime())


class Ledger:
    """The files in `directory`. Written before anything is held and after all is let go."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self._directory = directory

    def begin(self, began_at: float, dead_man_seconds: float) -> UnderWay:
        """Count a hold and note that it is under way. Raises OSError."""
        _, count = self._read()
        under_way = UnderWay(count + 1, began_at, boottime() + dead_man_seconds)
        self._write(_LEDGER, json.dumps({"count": count + 1, "under_way": asdict(under_way)}))
        return under_way

    def end(self, account: str) -> None:
        """Note that no hold is under way, and what there is to say of the last. Raises OSError."""
        _, count = self._read()
        self._write(_ACCOUNT, account)
        self._write(_LEDGER, json.dumps({"count": count, "under_way": None}))

    def under_way(self) -> UnderWay | None:
        """The hold under way, whoever holds."""
        return self._read()[0]

    def note(self, account: str) -> None:
        """Keep an account of a hold that still lasts. Raises OSError."""
        self._write(_ACCOUNT, account)

    def account(self) -> str | None:
        """The last account, None when there was no hold since the guest's start."""
        try:
            return (self._directory / _ACCOUNT).read_text()
        except FileNotFoundError:
            return None

    def _read(self) -> tuple[UnderWay | None, int]:
        try:
            given = json.loads((self._directory / _LEDGER).read_text())
        except FileNotFoundError:
            return None, 0
        under_way = given["under_way"]
        return None if under_way is None else UnderWay(**under_way), given["count"]

    def _write(self, name: str, text: str) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside = self._directory / f"{name}.new"
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
        beside.rename(self._directory / name)


def boot_id() -> str:
    """The kernel's id of this start of the guest."""
    return _BOOT_ID.read_text().strip()
