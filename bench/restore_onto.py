"""How long it takes to bring an image back to a restore point, by how much of it differs.

`python -m bench.restore_onto DIRECTORY [MiB]`: random bytes, a share of them changed in runs of 64
KiB. Caches of the kernel are dropped before each, where that is allowed.
"""

import os
import random
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from atoll.blocks.readers import FileReader
from atoll.model.points import DiskImage
from atoll.recovery.disks import restore_disk
from atoll.recovery.onto import restore_onto
from atoll.repository.keys import create_key_file
from atoll.repository.repository import Repository

_RUN = 64 << 10
_SHARES = (0.01, 0.1)


def main() -> None:
    """Print a line for each share and way."""
    size = int(sys.argv[2] if len(sys.argv) > 2 else 512) << 20
    with TemporaryDirectory(dir=sys.argv[1]) as directory:
        measure(Path(directory), size)


def measure(work: Path, size: int) -> None:
    """Make a repository and restore from it in each way."""
    old, target = work / "old", work / "disk.img"
    old.write_bytes(os.urandom(size))
    key = create_key_file(work / "key")
    with Repository.create(work / "repository", key) as repository:
        before = _stored(repository, old)
        for share in _SHARES:
            new = work / "new"
            content = bytearray(old.read_bytes())
            for run in random.sample(range(size // _RUN), int(size // _RUN * share)):
                content[run * _RUN : (run + 1) * _RUN] = os.urandom(_RUN)
            new.write_bytes(content)
            after = _stored(repository, new)
            for known in (False, True):
                target.write_bytes(old.read_bytes())
                reader = repository.open_disk(after)
                changed = repository.changed_extents(before, after) if known else None
                how = "known-to-be" if known else "compared"

                def onto() -> None:
                    restore_onto(reader, target, changed)  # noqa: B023 - called at once

                print(f"{share:.0%} differs, {how}: {_timed(onto):.2f} s")
                reader.close()
                assert target.read_bytes() == content
        reader = repository.open_disk(before)
        target.unlink()
        print(f"to a new image: {_timed(lambda: restore_disk(reader, target)):.2f} s")
        reader.close()


def _stored(repository: Repository, path: Path) -> DiskImage:
    reader = FileReader(path)
    copied = repository.copy_disk(reader)
    reader.close()
    return DiskImage(
        2000, "", "", copied.size_bytes, copied.root, "", (), 0, 0, copied.stored_bytes
    )


def _timed(work: Callable[[], None]) -> float:
    os.sync()
    with suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3")
    began = time.monotonic()
    work()
    return time.monotonic() - began


if __name__ == "__main__":
    main()
