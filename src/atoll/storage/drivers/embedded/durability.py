"""What it costs, on this pool, to acknowledge writes only when they are on disk."""

import os
import tempfile
import time
from pathlib import Path

from atoll.model.storage import DurabilityChoice
from atoll.storage.targets.tgt import Durability

_BLOCK = b"\x5a" * 4096
_FILE_BYTES = 64 << 20

_WORDS = {
    "disk": ("it is on the pool's disks", "nothing that was acknowledged"),
    "cache": (
        "this host's memory has it",
        "what initiators have not flushed since; ESX itself does not flush VMFS",
    ),
}


def choices(root: Path, chosen: Durability, seconds: float = 2.0) -> list[DurabilityChoice]:
    """Both choices with 4 KiB writes a second, one at a time, as tgtd does them; without network."""
    return [
        DurabilityChoice(name, name == chosen, *_WORDS[name], _writes(root, name, seconds))
        for name in _WORDS
    ]


def _writes(root: Path, durability: str, seconds: float) -> float:
    """Writes a second all over a file that is gone afterwards, whoever dies. OSError."""
    with tempfile.TemporaryFile(dir=root) as file:
        os.ftruncate(file.fileno(), _FILE_BYTES)
        count, began = 0, time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            os.pwrite(file.fileno(), _BLOCK, count * 7919 % (_FILE_BYTES // 4096) * 4096)
            if durability == "disk":
                os.fdatasync(file.fileno())
            count += 1
    return count / passed
