"""`python -m bench.repo_index`: the repository's index at the size of a large site.

8×10^7 chunks of 256 KiB, which compressed by half are 10 TB stored, and five restore points of every
disk, which are 100 TB logical. The site is made once, in ~/.cache/atoll-bench, in some minutes and 8 GB;
`--rows` makes a smaller one. Each part is measured in a process of its own, so that its memory is its own.

All figures are with the cache's files in the page cache, as they are on a machine that was backed up to
before; `index_lookups_cold_per_second` is without.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from atoll.repository.chunks import ChunkCodec
from atoll.repository.fetch import ChunkSource
from atoll.repository.index import Index, IndexCache
from atoll.repository.packs import PackKeys
from atoll.repository.prune import Pruner
from bench.repo_index_site import MASTER, SiteStore, chunk_names, open_site
from bench.report import Figure, figure, publish, say

ROWS = 80_000_000
PLACE = Path.home() / ".cache" / "atoll-bench"
LOOKUPS = 1_000_000
ROUNDS = 3
COLD_LOOKUPS = 2_000
JOB_NAMES = 4
"""Names that a copy looks up at a time: those of 1 MiB."""
PAGE_NAMES = 256
"""Names that a prune looks up at a time: those of a page."""


def measure(rows: int = ROWS) -> dict[str, float]:
    """All figures, by name; seconds, bytes, and lookups a second."""
    figures: dict[str, float] = {}
    for part in _PARTS:
        say(f"index of {rows:,} chunks: {part}")
        done = subprocess.run(
            [sys.executable, "-m", "bench.repo_index", "--rows", str(rows), "--part", part],
            check=True,
            stdout=subprocess.PIPE,
        )
        figures |= json.loads(done.stdout)
    return figures


def _open(rows: int) -> tuple[SiteStore, IndexCache]:
    root = PLACE / f"repo-index-{rows}"
    root.mkdir(parents=True, exist_ok=True)
    return open_site(root / "site", rows), IndexCache(root / "cache", "5e" * 16)


def _build(rows: int) -> dict[str, float]:
    """From segments only, as after the cache was lost; skipped if it is there."""
    store, cache = _open(rows)
    if cache.edition() is not None:
        return {}
    began = time.perf_counter()
    Index(cache).refresh(store, MASTER).consolidate(store, MASTER)
    return {
        "index_build_seconds": time.perf_counter() - began,
        "index_build_resident_bytes": _peak_bytes(),
    }


def _lookups(rows: int) -> dict[str, float]:
    """Half of the names are there, as in a copy of which half is new. One thread."""
    store, cache = _open(rows)
    began = time.perf_counter()
    index = Index(cache).refresh(store, MASTER)
    opened = time.perf_counter() - began
    single, single_cpu, paged = [], [], []
    for seed in range(ROUNDS):
        names = _names(rows, LOOKUPS, seed)
        raw = names.tobytes()
        asked = [raw[at : at + 32] for at in range(0, len(raw), 32)]
        jobs = [asked[at : at + JOB_NAMES] for at in range(0, len(asked), JOB_NAMES)]
        began, worked, found = time.perf_counter(), time.process_time(), 0
        for job in jobs:
            found += sum([name in index for name in job])
        single.append(len(names) / (time.perf_counter() - began))
        single_cpu.append(len(names) / (time.process_time() - worked))
        _expect(found, len(names) // 2)
        began, found = time.perf_counter(), 0
        for at in range(0, len(names), PAGE_NAMES):
            found += int((index.find(names[at : at + PAGE_NAMES]) >= 0).sum())
        paged.append(len(names) / (time.perf_counter() - began))
        _expect(found, len(names) // 2)
    return {
        "index_open_seconds": opened,
        "index_lookups_per_second": median(single),
        "index_lookups_per_cpu_second": median(single_cpu),
        "index_page_lookups_per_second": median(paged),
    }


def _resident(rows: int) -> dict[str, float]:
    """Memory of a process that opens the index and looks chunks up, and nothing else."""
    store, cache = _open(rows)
    index = Index(cache).refresh(store, MASTER)
    for part in range(0, LOOKUPS, PAGE_NAMES):
        names = chunk_names(np.arange(part, part + PAGE_NAMES) * 39 % rows)
        index.find(names)
        _ = [name.tobytes() in index for name in names[:JOB_NAMES]]
    return {"index_resident_bytes": _peak_bytes()}


def _cold(rows: int) -> dict[str, float]:
    """With nothing of the cache's files in the page cache: what the disk gives."""
    store, cache = _open(rows)
    _forget(PLACE / f"repo-index-{rows}" / "cache")
    began = time.perf_counter()
    index = Index(cache).refresh(store, MASTER)
    opened = time.perf_counter() - began
    raw = _names(rows, COLD_LOOKUPS).tobytes()
    began = time.perf_counter()
    found = sum([raw[at : at + 32] in index for at in range(0, len(raw), 32)])
    seconds = time.perf_counter() - began
    _expect(found, len(raw) // 64)
    began = time.perf_counter()
    index.check()
    return {
        "index_open_cold_seconds": opened,
        "index_lookups_cold_per_second": len(raw) // 32 / seconds,
        "index_check_seconds": time.perf_counter() - began,
    }


def _prune(rows: int) -> dict[str, float]:
    store, cache = _open(rows)
    keys = PackKeys(MASTER)
    source = ChunkSource(store, MASTER, ChunkCodec(MASTER), keys, cache)
    began = time.perf_counter()
    plan = Pruner(store, MASTER, source, keys).plan()
    seconds = time.perf_counter() - began
    _expect(plan.unused_packs, 0)
    return {
        "prune_plan_seconds": seconds,
        "prune_plan_pages": store.shape.pages,
        "prune_plan_resident_bytes": _peak_bytes(),
    }


_PARTS: dict[str, Callable[[int], dict[str, float]]] = {
    "build": _build,
    "lookups": _lookups,
    "resident": _resident,
    "prune": _prune,
    "cold": _cold,
}


def _names(rows: int, count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Names in no order, every second of a chunk that is there, all different."""
    there = np.array(random.Random(seed).sample(range(rows), min(rows, count // 2)))
    names = np.zeros((2 * len(there), 32), np.uint8)
    names[::2] = chunk_names(there)
    names[1::2] = chunk_names(there + rows)
    return names


def _forget(directory: Path) -> None:
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _expect(found: int, wanted: int) -> None:
    if found != wanted:
        raise SystemExit(f"{found} instead of {wanted}: what was measured is wrong")


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _figures(measured: dict[str, float]) -> Sequence[Figure]:
    units = {"seconds": "s", "bytes": "bytes", "second": "/s", "pages": "pages"}
    return [
        figure(name, [value], units[name.rpartition("_")[2]]) for name, value in measured.items()
    ]


def main() -> None:
    """Measure, print a table and write build/bench/repo_index.json."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--part", choices=list(_PARTS))
    given = parser.parse_args()
    if given.part is not None:
        sys.stdout.write(json.dumps(_PARTS[given.part](given.rows)))
        return
    publish("repo_index", _figures(measure(given.rows)))


if __name__ == "__main__":
    main()
