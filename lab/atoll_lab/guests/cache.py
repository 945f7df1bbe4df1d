"""What is slow to build is built once: a directory per content key, shared by all labs of a user."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path


def cache_directory() -> Path:
    """`$ATOLL_LAB_CACHE`, or ~/.cache/atoll-lab."""
    given = os.environ.get("ATOLL_LAB_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "atoll-lab"


def content_key(parts: Iterable[bytes]) -> str:
    """A short name for everything that goes into a build; order matters."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:16]


def cached(name: str, key: str, build: Callable[[Path], None]) -> Path:
    """The directory `name-key`, filled by `build(directory)` the first time it is asked for.

    `build` works in a directory of another name that is renamed when it is
    complete and on disk, so a killed build leaves nothing that looks finished.
    A second builder of the same thing waits for the first and takes its result.
    """
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    final = cache / f"{name}-{key}"
    if final.is_dir():
        return final
    unfinished = f".{name}-{key}.building."
    with (cache / f".{name}-{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if final.is_dir():
            return final
        # Under the lock nobody else builds this, so what lies here was left by a killed builder.
        for leftover in cache.glob(f"{unfinished}*"):
            shutil.rmtree(leftover)
        work = Path(tempfile.mkdtemp(prefix=unfinished, dir=cache))
        try:
            build(work)
            subprocess.run(["sync", "-f", str(work)], check=True)
            work.chmod(0o755)
            work.rename(final)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        _fsync_directory(cache)
    return final


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
