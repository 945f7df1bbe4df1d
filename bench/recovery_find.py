"""`python -m bench.recovery_find`: a repository whose catalogues list a hundred million files.

They are synthetic: a hundred VMs of a million files each, all names different, made page by page as
a scan would have made them; the numbers beside the names are the same on every page. One file of the
last VM that is looked into has a name that nothing else resembles. Built once into the user's cache,
with the filters that backups would have noted.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from atoll.catalogue.contents import CatalogueVolume, Contents, PageInfo, pack_contents
from atoll.catalogue.entries import STAT
from atoll.catalogue.pages import NamesPage, pack_stats
from atoll.catalogue.patterns import Bounds, Pattern
from atoll.catalogue.search import Search, Searched
from atoll.model.consistency import Consistency, ConsistencyProof
from atoll.model.points import RestorePoint
from atoll.repository.keys import KeyFile, create_key_file
from atoll.repository.repository import Repository
from atoll.service.cataloguing import catalogue_of, note_filters, open_filters
from bench.recovery_image import CACHE
from bench.report import say

VMS = 100
FILES_PER_VM = 1_000_000
_ROWS = 1250
NEEDLE = "zq-the-one-that-was-lost.kdbx"
_WORDS = (
    *("report", "invoice", "config", "module", "index", "main", "test", "data", "image", "photo"),
    *("backup", "draft", "final", "notes", "session", "cache", "table", "user", "service"),
)
_ENDINGS = ("txt", "py", "jpg", "json", "pdf", "log", "html", "xlsx")


def site(vms: int = VMS) -> Path:
    """The repository's directory, with its key and caches; built where it is not there."""
    place = CACHE / f"find-{vms}"
    if not (place / "ready.json").exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        _build(place, vms)
    return place


def opened(place: Path) -> Repository:
    """The repository there."""
    return Repository.open(place / "repository", KeyFile(place / "key"), caches=place / "caches")


def _build(place: Path, vms: int) -> None:
    key = create_key_file(place / "key")
    Repository.create(place / "repository", key).close()
    stats = np.zeros(_ROWS, STAT)
    stats["kind"], stats["mode"], stats["nlink"] = 1, 0o644, 1
    stats["inode"] = np.arange(_ROWS)
    numbers = pack_stats(stats, [])
    began = time.monotonic()
    for vm in range(vms):
        with opened(place) as repository:
            name = repository.put_pieces(_pieces(vm, numbers))
            made = _point(vm, name)
            repository.commit([made])
            note_filters(repository, [made])
        if vm % 10 == 9:
            say(f"{vm + 1} VMs, {time.monotonic() - began:.0f} s")
    (place / "ready.json").write_text(json.dumps({"entries": vms * FILES_PER_VM}))


def _pieces(vm: int, numbers: bytes) -> Iterator[bytes]:
    pages = []
    for page in range(FILES_PER_VM // _ROWS):
        first = vm * FILES_PER_VM + page * _ROWS
        names = [
            f"{_WORDS[n % 19]}_{_WORDS[n // 19 % 19]}-{n:09d}.{_ENDINGS[n % 8]}"
            for n in range(first, first + _ROWS)
        ]
        if vm == 0 and page == FILES_PER_VM // _ROWS - 1:
            names[-1] = NEEDLE
        names.sort()
        directory = f"/srv/{page:05d}".encode()
        text = b"".join(name.encode() + b"\0" for name in names)
        made = NamesPage([directory], np.array([_ROWS], np.uint32), text)
        pages.append(PageInfo(_ROWS, 0, directory, made.name(0)))
        yield made.to_bytes()
        yield numbers
    volume = CatalogueVolume(
        "disk1:part1", "ext4", "", "", "clean", ("/",), ("",), FILES_PER_VM, "", 0, ()
    )
    yield from pack_contents(Contents((volume,), tuple(pages)))


def _point(vm: int, catalogue: str) -> RestorePoint:
    name, at = f"vm{vm:03d}", 1_700_000_000.0 + vm
    proof = ConsistencyProof(name, Consistency.NONE, (), None, "", "", at, at, "", "")
    return RestorePoint(
        name, "20260101", name, name, at, "", "", False, proof, (), "", "", catalogue
    )


def first_result(place: Path, pattern: str, *, filters: bool = True) -> tuple[float, float, int]:
    """Seconds from opening the repository to the first result and to the first ten; pages read."""
    began = time.monotonic()
    with opened(place) as repository:
        points = list(reversed(repository.points()))
        catalogues = (
            Searched(
                point.vm,
                point.instance_uuid,
                point.run,
                point.created_at,
                partial(catalogue_of, repository, point),
            )
            for point in points
        )
        known = open_filters(repository) if filters else None
        search = Search(Pattern(pattern), Bounds(), known)
        found = search.run(catalogues)
        first = next(found, None)
        seconds = time.monotonic() - began
        if first is None:
            raise SystemExit(f"{pattern} was not found: what was measured is wrong")
        for _ in zip(range(9), found, strict=False):
            pass
        found.close()
        return seconds, time.monotonic() - began, search.pages_read


def drop(place: Path) -> None:
    """Have the kernel forget what it knows of the files there, as after a night of backups."""
    for path in place.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    site()
