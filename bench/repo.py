"""`python -m bench.repo`: the repository beside restic, Borg and cp, and beside its own limits.

The disks are those of `bench.repo_set`, the programs those of `bench.repo_peers`, which `scripts/bench-peers`
fetches. All repositories lie in one directory, `--at`, which is removed at the end. Ratios above 1 mean that
Atoll is better. Processor seconds are the figures to go by where others work on the machine; each is the
median of three rounds (`--rounds`) in which the programs take turns.
"""

import argparse
import hashlib
import importlib.util
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from atoll.model.extents import Extent
from bench.repo_atoll import forget_pages
from bench.repo_parts import limits, writers
from bench.repo_peers import (
    Atoll,
    Borg,
    Copy,
    Cost,
    Peer,
    Restic,
    remove,
    restored_file,
    stored_bytes,
)
from bench.repo_set import DISK_BYTES, DiskSet, disk_set
from bench.report import Figure, figure, high_figure, publish, published, say

ROUNDS = 3
SAME_SIZE_LEVEL = 3
"""The level at which one disk takes about as much as in restic, which `full_stored_bytes_*` show."""
_SPARSE_BYTES = (DISK_BYTES, 64 << 30, 512 << 30)
Costs = Mapping[str, Sequence[Cost]]


def _rounds(
    peers: Sequence[Peer], work: Callable[[Peer, int], Cost], rounds: int
) -> dict[str, list[Cost]]:
    costs: dict[str, list[Cost]] = {peer.name: [] for peer in peers}
    for turn in range(rounds):
        for peer in peers:
            cost = work(peer, turn)
            say(f"round {turn + 1}, {peer.name}: {cost.cpu:.2f} s CPU, {cost.wall:.2f} s")
            costs[peer.name].append(cost)
    return costs


def _cpu(costs: Sequence[Cost]) -> list[float]:
    return [cost.cpu for cost in costs]


def _wall(costs: Sequence[Cost]) -> list[float]:
    return [cost.wall for cost in costs]


def _better(name: str, peer: str, theirs: Sequence[float], ours: Sequence[float]) -> Figure:
    """A ratio of medians, above 1 if Atoll takes less."""
    value = statistics.median(theirs) / statistics.median(ours)
    samples = tuple(their / our for their, our in zip(theirs, ours, strict=True))
    return Figure(name, value, "ratio", samples, peer, value)


def _costs(prefix: str, costs: Costs) -> list[Figure]:
    found = []
    for name, each in costs.items():
        found.append(figure(f"{prefix}_cpu_seconds_{name}", _cpu(each), "s"))
        found.append(figure(f"{prefix}_wall_seconds_{name}", _wall(each), "s"))
    return found


def _peers(at: Path) -> tuple[Atoll, Atoll, Restic, Borg, Copy]:
    return (
        Atoll(at / "atoll"),
        Atoll(at / "atoll-same", SAME_SIZE_LEVEL),
        Restic(at / "restic"),
        Borg(at / "borg"),
        Copy(at / "cp"),
    )


def full(disks: DiskSet, at: Path, rounds: int) -> list[Figure]:
    """A whole disk into an empty repository; then all three VMs and a day, for the sizes."""
    peers = _peers(at)
    atoll, same, restic, borg, _ = peers

    def work(peer: Peer, turn: int) -> Cost:
        remove(peer)
        peer.create()
        return peer.backup(disks.vm2, "vm2")

    costs = _rounds(peers, work, rounds)
    ours, others = costs[atoll.name], costs[same.name]
    one = {peer.name: stored_bytes(peer) for peer in peers}
    for peer in peers[:4]:
        _verify(peer, disks.vm2, "vm2", at)
        # Borg takes what has the name and time of an older file for the same; these have other names.
        for disk in (disks.vm1, disks.vm3, disks.day2):
            peer.backup(disk, disk.stem)
    size = {peer.name: stored_bytes(peer) for peer in peers[:4]}
    found = _costs("full", costs)
    found += [figure(f"full_stored_bytes_{name}", [value], "bytes") for name, value in one.items()]
    found += [figure(f"stored_bytes_{name}", [value], "bytes") for name, value in size.items()]
    for suffix, mine, theirs in (
        ("vs_restic", ours, restic.name),
        ("vs_borg", ours, borg.name),
        ("vs_restic_same_size", others, restic.name),
    ):
        for kind, taken in (("cpu", _cpu), ("wall", _wall)):
            found.append(
                _better(f"full_{kind}_{suffix}", theirs, taken(costs[theirs]), taken(mine))
            )
    for ours_name, suffix in ((atoll.name, ""), (same.name, "_same_size")):
        for peer, short in ((restic, "restic"), (borg, "borg")):
            found.append(
                _better(f"size_vs_{short}{suffix}", peer.name, [size[peer.name]], [size[ours_name]])
            )
    for each in peers:
        remove(each)
    return found


def smallest(disks: DiskSet, at: Path, rounds: int) -> list[Figure]:
    """restic as small as it can, once: it takes minutes."""
    restic = Restic(at / "restic", "max")
    restic.create()
    costs = {restic.name: [restic.backup(disks.vm2, "vm2")]}
    one = figure(f"full_stored_bytes_{restic.name}", [stored_bytes(restic)], "bytes")
    remove(restic)
    return [*_costs("full", costs), one]


def incremental(disks: DiskSet, at: Path, rounds: int) -> list[Figure]:
    """The second day of a disk of which the first is there, once for each round."""
    atoll, _, restic, borg, _ = _peers(at)
    peers: Sequence[Peer] = (atoll, restic, borg)
    for peer in peers:
        peer.create()
        peer.backup(disks.vm2, "vm2")
    kept = {peer.name: at / f"kept-{peer.name}" for peer in peers}
    for peer in peers:
        for part in _parts(peer):
            shutil.copytree(part, kept[peer.name] / part.name)

    def work(peer: Peer, turn: int) -> Cost:
        for part in _parts(peer):
            shutil.rmtree(part)
            shutil.copytree(kept[peer.name] / part.name, part)
        if peer is atoll:
            return atoll.increment(disks.day2, "day2", "vm2", disks.changed)
        return peer.backup(disks.day2, "day2")

    before = {peer.name: stored_bytes(peer) for peer in peers}
    costs = _rounds(peers, work, rounds)
    found = _costs("incremental", costs)
    for peer in peers:
        found.append(
            figure(
                f"incremental_stored_bytes_{peer.name}",
                [stored_bytes(peer) - before[peer.name]],
                "bytes",
            )
        )
        _verify(peer, disks.day2, "day2", at)
    for peer, name in ((restic, "restic"), (borg, "borg")):
        ours, theirs = _cpu(costs[atoll.name]), _cpu(costs[peer.name])
        found.append(_better(f"incremental_vs_{name}", peer.name, theirs, ours))
    for each in peers:
        remove(each)
        shutil.rmtree(kept[each.name])
    return found + _sizes(disks, at, rounds)


def _parts(peer: Peer) -> list[Path]:
    """A repository and what Borg knows of it elsewhere: it refuses one that is older than it knew."""
    return [part for part in (peer.place, Path(f"{peer.place}.base")) if part.exists()]


def _sizes(disks: DiskSet, at: Path, rounds: int) -> list[Figure]:
    """The same change to ever larger sparse disks."""
    changes = [extent for extent in disks.changed if extent.end <= DISK_BYTES]
    found = []
    for size in _SPARSE_BYTES:
        atoll = Atoll(at / "atoll-large")
        day1, day2 = at / "large-1.raw", at / "large-2.raw"
        for source, target in ((disks.vm2, day1), (disks.day2, day2)):
            subprocess.run(["cp", "--sparse=always", source, target], check=True)
            with target.open("r+b") as file:
                file.truncate(size)
        spread = _spread(changes, size, day2, disks.day2)
        costs = []
        for _ in range(rounds):
            remove(atoll)
            atoll.create()
            atoll.backup(day1, "day1")
            costs.append(atoll.increment(day2, "day2", "day1", spread))
        found.append(figure(f"incremental_cpu_seconds_{size >> 30}_gib", _cpu(costs), "s"))
        found.append(figure(f"incremental_wall_seconds_{size >> 30}_gib", _wall(costs), "s"))
        remove(atoll)
        day1.unlink()
        day2.unlink()
    return found


def _spread(changes: Sequence[Extent], size: int, day2: Path, source: Path) -> list[Extent]:
    """The changes moved apart over the whole of a larger disk, and written there."""
    factor = size // DISK_BYTES
    spread = []
    with source.open("rb") as old, day2.open("r+b") as new:
        for extent in changes:
            moved = Extent(extent.offset * factor, extent.length)
            old.seek(extent.offset)
            new.seek(moved.offset)
            new.write(old.read(extent.length))
            spread.append(moved)
    return spread


def restore(disks: DiskSet, at: Path, rounds: int) -> list[Figure]:
    """A whole disk back into a new file, made durable by Atoll and by cp alone."""
    atoll, _, restic, borg, copy = _peers(at)
    peers: Sequence[Peer] = (atoll, restic, borg, copy)
    for peer in peers:
        peer.create()
        peer.backup(disks.vm2, "vm2")
    target = at / "restored"

    def work(peer: Peer, turn: int) -> Cost:
        cost = peer.restore(disks.vm2, "vm2", target)
        if turn == 0 and _digest(restored_file(disks.vm2, target)) != _digest(disks.vm2):
            raise SystemExit(f"{peer.name} restored other bytes than it was given.")
        _remove(target)
        return cost

    costs = _rounds(peers, work, rounds)
    found = _costs("restore", costs)
    ours = _wall(costs[atoll.name])
    best = min((restic.name, borg.name), key=lambda name: statistics.median(_wall(costs[name])))
    found.append(_better("restore_vs_best_peer", best, _wall(costs[best]), ours))
    found.append(_better("restore_vs_cp", copy.name, _wall(costs[copy.name]), ours))
    for each in peers:
        remove(each)
    return found


def random_reads(disks: DiskSet, at: Path, rounds: int) -> list[Figure]:
    """Reads of 64 KiB at random where the disk has data."""
    atoll = Atoll(at / "atoll")
    atoll.create()
    atoll.backup(disks.vm2, "vm2")
    forget_pages(atoll.place)
    found = []
    for kind, seconds in atoll.random("vm2").items():
        taken = [1000 * each for each in seconds]
        found.append(figure(f"random_read_{kind}_p50_ms", taken, "ms"))
        found.append(high_figure(f"random_read_{kind}_p99_ms", taken, "ms"))
    remove(atoll)
    return found


def _verify(peer: Peer, disk: Path, name: str, at: Path) -> None:
    """SystemExit unless what comes back is what went in."""
    target = at / "verified"
    peer.restore(disk, name, target)
    if _digest(restored_file(disk, target)) != _digest(disk):
        raise SystemExit(f"{peer.name} restored other bytes than it was given.")
    _remove(target)


def _remove(target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def index(disks: DiskSet, at: Path, rounds: int) -> list[Figure]:
    """The index at the size of a large site, which needs none of the disks."""
    if importlib.util.find_spec("bench.repo_index") is None:
        return []
    measured: Mapping[str, float] = import_module("bench.repo_index").measure()
    return [figure(name, [value], _unit(name)) for name, value in measured.items()]


def _unit(name: str) -> str:
    if name.endswith("_bytes"):
        return "bytes"
    return "/s" if name.endswith("_per_second") else "s"


_PARTS: dict[str, Callable[[DiskSet, Path, int], list[Figure]]] = {
    "full": full,
    "smallest": smallest,
    "limits": limits,
    "incremental": incremental,
    "restore": restore,
    "random": random_reads,
    "writers": writers,
    "index": index,
}


def main() -> None:
    """Measure all parts, or those asked for; figures of the others stay as they were published."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", action="append", choices=_PARTS)
    parser.add_argument("--at", type=Path, default=Path("/var/tmp"), help="where repositories lie")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--name", default="repo", help="of the file in build/bench")
    given = parser.parse_args()
    subprocess.run(["sh", "scripts/bench-peers"], check=True)
    disks = disk_set()
    figures = {each.name: each for each in published(given.name)}
    for part in given.only or _PARTS:
        say(f"{part}")
        with tempfile.TemporaryDirectory(prefix="atoll-bench-", dir=given.at) as at:
            figures |= {each.name: each for each in _PARTS[part](disks, Path(at), given.rounds)}
        publish(given.name, list(figures.values()))


if __name__ == "__main__":
    main()
