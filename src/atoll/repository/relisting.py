"""Segments written anew: without packs that go, with packs that came, and few instead of many."""

from collections.abc import Iterable, Sequence, Set

from atoll.repository.index import INDEX, listed_packs, read_segment, write_segment
from atoll.repository.keys import MasterKey
from atoll.repository.packs import PackListing
from atoll.repository.session import PACKS_PER_SEGMENT
from atoll.repository.store import ObjectStore


def list_packs(store: ObjectStore, master: MasterKey, packs: Sequence[PackListing]) -> None:
    """List packs, which must be durable by now, in segments of the usual size."""
    for first in range(0, len(packs), PACKS_PER_SEGMENT):
        write_segment(store, master, packs[first : first + PACKS_PER_SEGMENT])


def relist(
    store: ObjectStore,
    master: MasterKey,
    segments: Iterable[str],
    doomed: Set[str],
    joined: Set[str] = frozenset(),
) -> None:
    """Have no segment list a doomed pack any more, and make the `joined` ones into few.

    What stays is listed before the old segments go, so it is listed at every moment. The caller holds
    the maintenance lock.
    """
    old: list[str] = []
    seen: set[str] = set()
    kept: list[PackListing] = []
    for segment in sorted(segments):
        if segment not in joined and not (doomed and doomed & listed_packs(store, master, segment)):
            continue
        old.append(segment)
        for pack in read_segment(store, master, segment):
            if pack.name not in doomed and pack.name not in seen:
                seen.add(pack.name)
                kept.append(pack)
        while len(kept) >= PACKS_PER_SEGMENT:
            write_segment(store, master, kept[:PACKS_PER_SEGMENT])
            del kept[:PACKS_PER_SEGMENT]
    if kept:
        write_segment(store, master, kept)
    for segment in old:
        store.delete(INDEX + segment)
