"""Making a damaged repository whole again, as far as there is anything whole to make it from.

Nothing that can be read is given up: what is whole of a damaged pack is stored in another before the
pack goes. What is lost comes from a second repository, or, noted as lost, from the next backup that
reads the same data.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from atoll.model.errors import RepositoryDamagedError
from atoll.repository.chunks import ChunkCodec, PackedChunk
from atoll.repository.doubled import as_written
from atoll.repository.fetch import ChunkSource
from atoll.repository.index import INDEX, read_segment
from atoll.repository.keys import MasterKey
from atoll.repository.lost import drop_found, note_lost, read_lost
from atoll.repository.packs import (
    PACK_BYTES,
    PACKS,
    OpenPack,
    PackEntry,
    PackKeys,
    PackListing,
    check_pack,
    object_name,
    put_pack,
)
from atoll.repository.reindex import rebuild_index
from atoll.repository.relisting import list_packs, relist
from atoll.repository.sealing import halves, twice
from atoll.repository.store import MissingObjectError, ObjectStore
from atoll.repository.verify import Verifier, VerifyReport

Fetch = Callable[[bytes], bytes]
"""A chunk's content by its name, from a second repository; RepositoryDamagedError if it has none."""


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What a repair did; objects by their names.

    `healed` are as they were written again. Of `rewritten` packs what was whole is in others now;
    `fetched_chunks` came from the second repository, `lost_chunks` are lost until a backup stores
    them again. `left` could not be mended at all. `remaining` is the damage that is left.
    """

    healed: tuple[str, ...]
    rewritten: tuple[str, ...]
    fetched_chunks: int
    lost_chunks: int
    left: tuple[str, ...]
    remaining: VerifyReport


class Repairer:
    """One repair of what a verify found. The caller holds the maintenance lock."""

    def __init__(
        self,
        store: ObjectStore,
        master: MasterKey,
        codec: ChunkCodec,
        keys: PackKeys,
        source: ChunkSource,
        other: ObjectStore | None,
        fetch: Fetch | None,
        pack_bytes: int = PACK_BYTES,
    ) -> None:
        """`other` and `fetch` are a second repository with the same key, if there is one."""
        self._store = store
        self._master = master
        self._codec = codec
        self._keys = keys
        self._source = source
        self._other = other
        self._fetch = fetch
        self._pack_bytes = pack_bytes
        self._healed: list[str] = []
        self._rewritten: list[str] = []
        self._left: list[str] = []
        self._fetched_chunks = 0
        self._lost: set[bytes] = set()

    def run(self, verifier: Verifier, trace: Callable[[], Verifier]) -> RepairReport:
        """Mend what the verify finds, as far as can be. Again is harmless.

        `trace` makes a verify that reads no packs and only follows what is there.
        """
        found = verifier.run()
        self._mend(found, verifier.lost)
        while True:
            again = trace()
            remaining = again.run()
            # What lies below a page that came back is known only now.
            if not self._fetch_all(again.lost):
                break
        self._note_lost(again.lost)
        return RepairReport(
            tuple(self._healed),
            tuple(self._rewritten),
            self._fetched_chunks,
            len(self._lost),
            tuple(self._left),
            remaining,
        )

    def _mend(self, found: VerifyReport, lost: set[bytes]) -> None:
        names = [damage.object for damage in found.damaged]
        for name in names:
            if not name.startswith((PACKS, INDEX)):
                (self._healed if self._second_half(name) else self._left).append(name)
        packs = [name for name in names if name.startswith(PACKS) and name != PACKS]
        whole = self._mend_packs(packs)
        self._fetch_all(lost - self._lost - whole)
        segments = [name for name in names if name.startswith(INDEX)]
        if segments:
            rebuild_index(self._store, self._master, self._source, self._keys)
            self._healed += segments

    def _note_lost(self, lost: set[bytes]) -> None:
        """Note what is lost in the end, `lost` among it."""
        index = self._source.refresh()
        self._lost = {name for name in self._lost | lost if name not in index}
        drop_found(self._store, self._master, index)
        note_lost(
            self._store, self._master, self._lost - read_lost(self._store, self._master, index)
        )

    def _second_half(self, name: str) -> bool:
        """Write an object that is kept twice anew from the half of it, or of the other's, that is whole."""
        for store in (self._store, self._other):
            if store is None:
                continue
            try:
                copies = halves(store.get(name))
            except MissingObjectError:
                continue
            for copy in copies:
                if as_written(self._master, name, copy):
                    self._store.replace(name, [twice(copy)])
                    return True
        return False

    def _mend_packs(self, names: Sequence[str]) -> set[bytes]:
        """Mend damaged and missing packs; gives the chunks they held that are whole now."""
        listed = self._listed({name.rpartition("/")[2] for name in names})
        whole: set[bytes] = set()
        doomed: set[str] = set()
        written: list[PackListing] = []
        filling = OpenPack(self._keys)
        for name in names:
            pack = name.rpartition("/")[2]
            entries = listed.get(pack)
            if self._from_other(name, pack, entries):
                self._healed.append(name)
                continue
            held, chunks = self._salvage(name, pack, entries)
            for entry, chunk in chunks:
                filling.add(entry.name, chunk)
                whole.add(entry.name)
                if filling.size_bytes >= self._pack_bytes:
                    written.append(put_pack(self._store, filling))
                    filling = OpenPack(self._keys)
            doomed.add(pack)
            self._rewritten.append(name)
            self._lost.update(entry.name for entry in held)
        if not filling.empty:
            written.append(put_pack(self._store, filling))
        list_packs(self._store, self._master, written)
        self._lost -= whole
        # Now, for whoever relies on them is to learn of it before he commits, and if this is killed.
        note_lost(self._store, self._master, self._lost)
        relist(self._store, self._master, self._source.refresh().segments, doomed)
        for pack in sorted(doomed):
            self._store.delete(object_name(pack))
        return whole

    def _listed(self, packs: set[str]) -> dict[str, tuple[PackEntry, ...]]:
        """What segments say of these packs."""
        found: dict[str, tuple[PackEntry, ...]] = {}
        for segment in sorted(self._source.refresh().segments):
            for pack in read_segment(self._store, self._master, segment):
                if pack.name in packs:
                    found[pack.name] = pack.entries
        return found

    def _from_other(self, name: str, pack: str, entries: tuple[PackEntry, ...] | None) -> bool:
        """Put the second repository's copy of a pack in its place, if that is whole."""
        if self._other is None:
            return False
        try:
            data = self._other.get(name)
        except MissingObjectError:
            return False
        if check_pack(self._keys, pack, data, self._codec.unpack, entries).problems:
            return False
        self._store.replace(name, [data])
        return True

    def _salvage(
        self, name: str, pack: str, entries: tuple[PackEntry, ...] | None
    ) -> tuple[tuple[PackEntry, ...], list[tuple[PackEntry, PackedChunk]]]:
        """What a pack held, and of that what is whole in it or in the second repository."""
        try:
            data = self._store.get(name)
        except MissingObjectError:
            data = b""
        check = check_pack(self._keys, pack, data, self._codec.unpack, entries)
        gone = {entry.number for entry in check.lost}
        view = memoryview(data)
        chunks = []
        for entry in check.entries:
            if entry.number not in gone:
                sealed = view[entry.offset : entry.offset + entry.sealed_bytes]
                chunks.append((entry, self._keys.open_chunk(pack, entry, sealed)))
            elif (content := self._fetched(entry.name)) is not None:
                chunks.append((entry, self._codec.pack(content)))
        return check.entries, chunks

    def _fetched(self, name: bytes) -> bytes | None:
        if self._fetch is None:
            return None
        try:
            content = self._fetch(name)
        except RepositoryDamagedError:
            return None
        self._fetched_chunks += 1
        return content

    def _fetch_all(self, names: set[bytes]) -> bool:
        """Chunks that no pack holds, from the second repository; whether it gave any."""
        before = self._fetched_chunks
        filling = OpenPack(self._keys)
        written: list[PackListing] = []
        index = self._source.refresh()
        for name in sorted(names):
            if name in index:
                continue
            content = self._fetched(name)
            if content is None:
                continue
            filling.add(name, self._codec.pack(content))
            if filling.size_bytes >= self._pack_bytes:
                written.append(put_pack(self._store, filling))
                filling = OpenPack(self._keys)
        if not filling.empty:
            written.append(put_pack(self._store, filling))
        list_packs(self._store, self._master, written)
        return self._fetched_chunks > before
