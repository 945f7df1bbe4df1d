"""`make bench-recovery`: what is there before anything is recovered: file catalogues and searches.

- `catalogue`: the catalogue of an ext4 image with a million files into a repository, against a walk of
  the same image by the kernel: a loop mount, every directory listed, every name looked up. Each turn of
  both begins with the image in the page cache and nothing of the mount; turns alternate. Then a second
  point, of which nothing changed.
- `find`: the first result of searches over a hundred million synthetic entries, with the filters that
  backups noted, in processes of their own after the kernel forgot the files.
- `instant`: a guest of the lab recovered in place; see `recovery_instant`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from atoll.blocks.readers import FileReader
from atoll.catalogue.build import pieces_of
from atoll.repository.keys import KeyFile, create_key_file
from atoll.repository.repository import Repository
from bench.recovery_find import FILES_PER_VM, NEEDLE, VMS, drop, first_result, site
from bench.recovery_image import million
from bench.recovery_instant import instant
from bench.report import Figure, figure, publish, published, say

_QUERIES = {
    "rare": NEEDLE[3:18],
    "numbered": "index_report-000000",
    "common": "invoice",
    "whole_name": NEEDLE,
    "wildcards": "zq-*.kdbx",
}


def catalogue(rounds: int) -> list[Figure]:
    """A million files, against the kernel."""
    image = million()
    kernel: list[float] = []
    kernel_cpu: list[float] = []
    ours: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="atoll-bench-") as work:
        _warm(image)
        for turn in range(rounds):
            walk = _kernel_walk(image, Path(work))
            kernel.append(walk["seconds"])
            kernel_cpu.append(walk["cpu"])
            ours.append(_alone("made", str(image), f"{work}/repository-{turn}"))
            say(f"kernel {kernel[-1]:.2f} s, catalogue {ours[-1]['seconds']:.2f} s")
    entries = ours[0]["entries"]
    rates = [each["entries"] / each["seconds"] for each in ours]
    best = [entries / each for each in kernel]
    ratios = [walk / each["seconds"] for walk, each in zip(kernel, ours, strict=True)]
    middle = sorted(ratios)[len(ratios) // 2]
    return [
        Figure("catalogue_vs_kernel_walk", middle, "ratio", tuple(ratios), "kernel walk", middle),
        figure("catalogue_entries_per_second", rates, "/s"),
        figure("kernel_walk_entries_per_second", best, "/s"),
        figure("catalogue_cpu_seconds", [each["cpu"] for each in ours], "s"),
        figure("kernel_walk_cpu_seconds", kernel_cpu, "s"),
        figure("catalogue_resident_bytes", [each["resident"] for each in ours], "bytes"),
        figure("catalogue_parser_resident_bytes", [each["parser"] for each in ours], "bytes"),
        figure("catalogue_stored_bytes_per_file", [each["first"] / entries for each in ours], "B"),
        figure(
            "catalogue_unchanged_bytes_per_file", [each["second"] / entries for each in ours], "B"
        ),
    ]


def _warm(image: Path) -> None:
    subprocess.run(["dd", f"if={image}", "of=/dev/null", "bs=8M", "status=none"], check=True)


def _kernel_walk(image: Path, work: Path) -> dict[str, float]:
    """Listing every directory and looking up every name."""
    at = work / "mounted"
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop,ro", image, at], check=True)
    try:
        return _alone("walked", str(at))
    finally:
        subprocess.run(["umount", at], check=True)


def _walked(top: str) -> dict[str, float]:
    began = time.monotonic()
    entries = 0
    waiting = [top]
    while waiting:
        with os.scandir(waiting.pop()) as found:
            for entry in found:
                entry.stat(follow_symlinks=False)
                entries += 1
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    return {"entries": entries, "seconds": time.monotonic() - began, "cpu": _cpu()}


def _cpu() -> float:
    """Processor seconds of this process and its children so far, the interpreter's start among them."""
    use = os.times()
    return use.user + use.system + use.children_user + use.children_system


def _made(image: str, place: str) -> dict[str, float]:
    """Two points of an unchanged image, each by a process that sees nothing of the other's."""
    key = Path(place + ".key")
    create_key_file(key)
    Repository.create(place, KeyFile(key)).close()
    found: dict[str, float] = {}
    count: list[int] = []
    for turn in ("first", "second"):
        with Repository.open(place, KeyFile(key)) as repository:
            before = repository.stats().stored_bytes
            reader = FileReader(Path(image))
            began = time.monotonic()
            repository.put_pieces(
                pieces_of([("disk", reader)], lambda address, entries: count.append(entries))
            )
            repository.commit([])
            if turn == "first":
                found["seconds"] = time.monotonic() - began
                found["cpu"] = _cpu()
            found[turn] = repository.stats().stored_bytes - before
            found["entries"] = count[-1]
    # In kibibytes (getrusage(2)); the children are the jailed parsers.
    found["resident"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found["parser"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return found


def find(rounds: int) -> list[Figure]:
    """A hundred million entries."""
    place = site()
    found = []
    worst: list[float] = []
    for name, pattern in _QUERIES.items():
        turns = []
        for _ in range(rounds):
            drop(place)
            turns.append(_alone("searched", str(place), pattern))
            say(f"{pattern}: {turns[-1]['first']:.3f} s, {turns[-1]['pages']:.0f} pages")
        found.append(figure(f"find_first_seconds_{name}", [each["first"] for each in turns], "s"))
        worst.append(found[-1].value)
    slowest = Figure("find_first_result_seconds", max(worst), "s", tuple(worst))
    cache = sum(path.stat().st_size for path in (place / "caches").rglob("*.filter"))
    return [
        slowest,
        *found,
        figure("find_entries", [VMS * FILES_PER_VM], "entries"),
        figure("find_cache_bytes", [cache], "bytes"),
    ]


def _searched(place: str, pattern: str) -> dict[str, float]:
    first, ten, pages = first_result(Path(place), pattern)
    return {"first": first, "ten": ten, "pages": pages}


def _alone(what: str, *arguments: str) -> dict[str, float]:
    """What a process of its own measured."""
    command = [sys.executable, "-m", "bench.recovery", "--alone", what, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


_ALONE: dict[str, Callable[..., dict[str, float]]] = {
    "walked": _walked,
    "made": _made,
    "searched": _searched,
}
_PARTS: dict[str, Callable[[int], Sequence[Figure]]] = {
    "catalogue": catalogue,
    "find": find,
    "instant": instant,
}


def main() -> None:
    """Measure, print a table and write build/bench/recovery.json."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--only", choices=list(_PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        what, *arguments = given.alone
        sys.stdout.write(json.dumps(_ALONE[what](*arguments)))
        return
    parts = [given.only] if given.only else list(_PARTS)
    made = [one for part in parts for one in _PARTS[part](given.rounds)]
    names = {one.name for one in made}
    publish("recovery", [*(one for one in published("recovery") if one.name not in names), *made])


if __name__ == "__main__":
    main()
