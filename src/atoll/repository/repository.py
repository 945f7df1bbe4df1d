"""The repository as the rest of Atoll sees it."""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from blake3 import blake3

from atoll.model.errors import (
    ConfigurationError,
    RepositoryDamagedError,
    RunConflictError,
    UnknownPointError,
)
from atoll.model.extents import Extent, complement, merge, total_bytes
from atoll.model.points import DiskImage, Evidence, RestorePoint
from atoll.model.readers import BlockReader
from atoll.model.retention import Holds, PointHold
from atoll.repository import copying
from atoll.repository.chunks import DEFAULT_LEVEL, ChunkCodec
from atoll.repository.config import DEFAULT_CHUNK_BYTES, create_config, open_config
from atoll.repository.copying import CopiedDisk
from atoll.repository.cutting import Cutter
from atoll.repository.differences import differing_extents
from atoll.repository.drafts import DRAFTS, DiskDraft, Draft, DraftLog, RunDraft
from atoll.repository.fetch import ChunkSource
from atoll.repository.holds import (
    HOLDS,
    HoldLog,
    forgetting,
    refuse_held,
    wait_for_forgetting,
)
from atoll.repository.images import BlobRecord, DiskRecord, name_of
from atoll.repository.index import IndexCache
from atoll.repository.inspection import ByKey
from atoll.repository.keys import KeySource
from atoll.repository.mirror import Kind, MirrorReport, kind_of, mirror
from atoll.repository.packs import PACK_BYTES, PACKS, PackKeys
from atoll.repository.pages import ChunkTable
from atoll.repository.places import create_place, open_place
from atoll.repository.planning import ranges_to_read
from atoll.repository.points import PointLog, find_point
from atoll.repository.prune import PrunePlan, Pruner, PruneReport
from atoll.repository.reach import Reach, lost_extents, relies_on
from atoll.repository.readers import Readers
from atoll.repository.reading import ImageReader
from atoll.repository.reindex import rebuild_index
from atoll.repository.repair import Repairer, RepairReport
from atoll.repository.s3_access import S3Access
from atoll.repository.session import Session
from atoll.repository.slots import Keyring
from atoll.repository.store import ObjectStore, own_objects
from atoll.repository.verify import Verifier, VerifyReport

_NO_ACCESS = S3Access()
_FOLDERS = ("keys/", "packs/", "index/", "points/", "evidence/", "holds/", "lost/", DRAFTS)


@dataclass(frozen=True, slots=True)
class RepositoryStats:
    """`stored_bytes` is what all objects take; `logical_bytes` the sum of all points' disks."""

    location: str
    chunk_bytes: int
    points: int
    logical_bytes: int
    chunks: int
    packs: int
    stored_bytes: int


class Repository:
    """A repository, open. Thread-safe; several processes may write at once.

    `begin` or the first `copy_disk` or `put_blob` begins a writing session,
    `commit`, `abandon` or `close` ends it. What a session stored belongs to no restore point until it is
    committed and is removed by a later `prune` if it never is. Reading needs no write access; where
    there is some, what is read stays until its reader is closed, whatever is forgotten and pruned meanwhile.
    """

    def __init__(
        self,
        store: ObjectStore,
        source_of_key: KeySource,
        *,
        pack_bytes: int = PACK_BYTES,
        compression: int = DEFAULT_LEVEL,
        caches: Path | None = None,
    ) -> None:
        """Open what is in `store`; see `open`."""
        self._config, self._master, slot = open_config(store, source_of_key)
        self.keyring = Keyring(store, self._master, self._config.id, slot)
        self._store = store
        self._pack_bytes = pack_bytes
        self._codec = ChunkCodec(self._master, compression)
        self._cutter = Cutter.of(self._master, self._config.chunk_bytes)
        self._keys = PackKeys(self._master)
        cache = None
        self._caches = None if caches is None else caches / f"{self._config.id}-files"
        if caches is not None:
            # Copies have the same id, and in one folder each would save over the other.
            place = blake3(store.location.encode()).hexdigest(length=4)
            cache = IndexCache(caches / f"{self._config.id}-{place}", self._config.id)
        self._source = ChunkSource(store, self._master, self._codec, self._keys, cache)
        self._log = PointLog(store, self._master)
        self._holds = HoldLog(store, self._master)
        self._session: Session | None = None
        self._readers = Readers(store, self._master)
        self._lock = threading.RLock()

    @classmethod
    def create(
        cls,
        location: str | Path,
        key: KeySource,
        *,
        chunk_bytes: int = DEFAULT_CHUNK_BYTES,
        label: str = "",
        access: S3Access = _NO_ACCESS,
    ) -> Self:
        """Make a repository and open it; StorageConflictError if there is one already.

        A key file must exist (`keys.create_key_file` makes one). The chunk size,
        a power of two, cannot be changed later. `label` is for the key's slot. `access`
        is used where the location is a bucket.
        """
        store = create_place(location, access)
        create_config(store, key, chunk_bytes, label)
        return cls(store, key)

    @classmethod
    def open(
        cls,
        location: str | Path,
        key: KeySource,
        *,
        access: S3Access = _NO_ACCESS,
        caches: Path | None = None,
    ) -> Self:
        """Open a repository. `caches` is a directory for what may be lost, one folder a repository.

        RepositoryUnreachableError if there is none, RepositoryKeyError if the key
        is not its, RepositoryDamagedError if its settings or key slots are broken.
        """
        return cls(open_place(location, access), key, caches=caches)

    def close(self) -> None:
        """End the writing session, if any, and let go of the store. Twice is harmless."""
        with self._lock:
            self.abandon()
            try:
                self._readers.end()
            finally:
                self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def chunk_bytes(self) -> int:
        """The chunk size."""
        return self._config.chunk_bytes

    @property
    def id(self) -> str:
        """32 hex digits that no other repository has, but copies of this one."""
        return self._config.id

    @property
    def cache_directory(self) -> Path | None:
        """Where whoever reads blobs may keep what can be lost; None if nowhere. Perhaps not there yet."""
        return self._caches

    def secret(self, purpose: str) -> bytes:
        """32 bytes that only who has the key knows, others for each purpose."""
        return self._master.derive(purpose)

    @property
    def key_id(self) -> str:
        """Names the key this repository was made with."""
        return self._config.key_id

    def begin(self) -> None:
        """Begin the writing session now, and so learn at once whether writing is possible."""
        self._begin()

    def abandon(self) -> None:
        """End the writing session, if any; what it stored becomes a leftover. Twice is harmless."""
        with self._lock:
            self._end_session()

    def copy_disk(
        self,
        reader: BlockReader,
        *,
        extents: Iterable[Extent] | None = None,
        parent: DiskImage | None = None,
        progress: Callable[[int], None] | None = None,
        threads: int | None = None,
        draft: DiskDraft | None = None,
    ) -> CopiedDisk:
        """Copy a disk; a restore point must name the `root` of the result for it to stay.

        `extents` None reads everything but `reader.holes()`. Otherwise they are
        widened to parts of the parent's chunks and only those are read: the rest is the parent's,
        or zeros where there is no parent or the disk is longer than it. `progress`
        is told the bytes read since it was last called, from the calling thread. With a `draft`, what
        an earlier process had copied by its draft is not read again, but counts as read and stored.
        On any error all that this session has stored is void, but for what drafts have of it.
        """
        session = self._begin()
        if draft is not None:
            root = parent.root if parent is not None and extents is not None else ""
            part = draft.begin(session, reader.size_bytes, root)
            if part is not None:
                extents = self._left(reader, extents, parent, part.copied_to)
                parent = part.image
                if progress is not None:
                    progress(part.read_bytes)
            progress = draft.counting(progress)
        image = None
        lost: Sequence[Extent] = ()
        if parent is not None and extents is not None:
            image, lost = self._parent(session, parent)
            if image is None:
                extents = None
        copied = copying.copy_disk(
            session,
            self._codec,
            self._cutter,
            self._config.chunk_bytes,
            reader,
            extents,
            image,
            progress,
            threads,
            draft.reached if draft is not None else None,
            lost,
        )
        session.made.add(copied.root)
        return draft.finish(copied) if draft is not None else copied

    def _left(
        self,
        reader: BlockReader,
        extents: Iterable[Extent] | None,
        parent: DiskImage | None,
        offset: int,
    ) -> list[Extent]:
        """What of a disk would be read from an offset on."""
        size = reader.size_bytes
        if extents is None:
            extents = complement(merge(reader.holes()), size)
        elif parent is not None:
            table = self._table(self._record(parent))
            extents = self._to_read(extents, table, size)
        return [
            Extent(start, each.end - start)
            for each in extents
            if (start := max(each.offset, offset)) < each.end
        ]

    def draft(
        self,
        run: str,
        keep_seconds: float,
        every_seconds: float | None = None,
        put: Callable[[], None] | None = None,
    ) -> RunDraft:
        """For the copy of a run: what a process that was cut off had copied, and what this one has.

        What it goes on with stays until the session ends. A draft of which something is missing counts
        for nothing. Those it puts are kept for `keep_seconds`; it puts one every minute, or as
        `every_seconds` says, and calls `put` then.
        """
        session = self._begin()
        log = DraftLog(self._store, self._master)
        found = log.of(run)
        if found is not None:
            session.keep(found[1].roots)
            # Only if it is there still, what it stands on is certain to stay.
            if log.of(run) == found and self._reaches(found[1].roots):
                session.made |= found[1].roots
            else:
                found = None
        return RunDraft(log, run, keep_seconds, found, every_seconds, put)

    def drafts(self) -> dict[str, Draft]:
        """The drafts that can be gone on with, by run."""
        going_on = DraftLog(self._store, self._master).going_on(frozenset())
        return {draft.run: draft for draft in going_on.values()}

    def drop_draft(self, run: str) -> None:
        """Nobody is to go on with what has been copied of a run. Twice is harmless."""
        DraftLog(self._store, self._master).drop(run)

    def _reaches(self, roots: Iterable[str]) -> bool:
        """Whether the index lists all that images need."""
        try:
            Reach(self._source.apart(), self._source.get).add(roots, [])
        except RepositoryDamagedError:
            return False
        return True

    def put_blob(self, data: bytes) -> str:
        """Store bytes of any size, in deduplicated pieces; returns their name (hex)."""
        step = self._config.chunk_bytes
        return self.put_pieces(data[at : at + step] for at in range(0, len(data), step))

    def put_pieces(self, pieces: Iterable[bytes]) -> str:
        """The same for a blob that is cut already; its pieces stay as they are: see `pieces_of`."""
        session = self._begin()
        size, names = 0, []
        try:
            for piece in pieces:
                size += len(piece)
                names.append(session.put(piece).name)
            record = BlobRecord(size, tuple(names))
            name = session.put(record.to_bytes()).name.hex()
        except BaseException as error:
            session.fail(error)
            raise
        session.made.add(name)
        return name

    def get_blob(self, name: str) -> bytes:
        """What `put_blob` was given; RepositoryDamagedError if it is not whole."""
        record = self._blob(name)
        data = b"".join(self._source.get_many(record.pieces))
        if len(data) != record.size_bytes:
            raise RepositoryDamagedError(
                f"Blob {name[:16]} has {len(data)} bytes and not {record.size_bytes}; verify the "
                "repository."
            )
        return data

    def pieces_of(self, blob: str) -> Sequence[bytes]:
        """The names of a blob's pieces in order; equal names are equal pieces."""
        return self._blob(blob).pieces

    def piece(self, name: bytes) -> bytes:
        """A piece of a blob by its name; RepositoryDamagedError if it is not whole."""
        return self._source.get(name)

    def _blob(self, name: str) -> BlobRecord:
        self._settle(name)
        return BlobRecord.from_bytes(self._source.get(name_of(name)))

    def commit(self, points: Sequence[RestorePoint]) -> None:
        """Make restore points visible: all of them, or none if this raises or is killed.

        Everything they name must have been stored since the last commit or belong
        to a committed point, else RepositoryDamagedError. Ends the session.
        """
        with self._lock:
            # Not `_begin` alone: a session that failed must say so here.
            session = self._session or self._begin()
            try:
                session.confirm()  # else the index would list packs that a prune has removed
                session.flush()
                self._check_named(session, points)
                if points:
                    self._append(session, points)
            finally:
                self._end_session()

    def _append(self, session: Session, points: Sequence[RestorePoint]) -> None:
        session.confirm()
        self._check_lost(session, points)
        name = self._log.append(points)
        try:
            session.confirm()
            self._check_lost(session, points)
        except (RunConflictError, RepositoryDamagedError):
            # Between the two looks it was taken for dead, or a repair came to its end.
            self._store.delete(name)
            raise

    def points(self) -> list[RestorePoint]:
        """All restore points that can be read, oldest first."""
        return self._log.points()

    @property
    def lost_points(self) -> Sequence[str]:
        """Objects with restore points that the last `points` could not read; `verify` says more."""
        return self._log.lost

    def find(self, reference: str) -> RestorePoint:
        """The point named by `VM`, `VM@latest`, `VM@ID`, an id, or the beginning of one.

        UnknownPointError, which names what there is, if none or several match;
        RepositoryDamagedError if none does and some points cannot be read.
        """
        points = self.points()
        try:
            return find_point(points, reference)
        except UnknownPointError as error:
            if self._log.lost:
                raise RepositoryDamagedError(
                    f"{reference!r} is not among the restore points that can be read, and "
                    f"{len(self._log.lost)} objects with others are damaged; run `atoll verify`."
                ) from error
            raise

    def open_disk(self, image: DiskImage) -> BlockReader:
        """Read a disk of a restore point at random.

        Every chunk is verified; reading raises RepositoryDamagedError where bytes
        are missing or not what was written, UnknownPointError if the point was forgotten meanwhile.
        """
        self._settle(image.root)
        let_go = self._kept(image.root)
        try:
            return ImageReader(self._source, self._record(image), closed=let_go)
        except BaseException:
            let_go()
            raise

    def bytes_to_copy(self, extents: Sequence[Extent], parent: DiskImage, size_bytes: int) -> int:
        """How much `copy_disk` will read for these extents of a disk of this size, for a progress bar.

        More if the parent has lost something; then that is not known yet.
        """
        try:
            self._settle(parent.root)
            table = self._table(self._record(parent))
            return total_bytes(self._to_read(extents, table, size_bytes))
        except RepositoryDamagedError:
            return total_bytes(extents)

    def changed_extents(self, older: DiskImage, newer: DiskImage) -> Iterator[Extent]:
        """Ranges of `newer` that may differ from `older`: in order, joined, none missed.

        Told by their chunk tables, whatever lies between the two; nothing of the
        disks is read. RepositoryDamagedError where a table is not whole.
        """
        self._settle(older.root)
        self._settle(newer.root)
        old, new = self._record(older), self._record(newer)
        return differing_extents(self._table(old), self._table(new))

    def add_evidence(self, point_id: str, evidence: Evidence) -> None:
        """Attach what a restore test saw; UnknownPointError if there is no such point."""
        if all(point.id != point_id for point in self.points()):
            raise UnknownPointError(
                f"There is no restore point {point_id} to attach evidence to; list the points."
            )
        self._log.attach(point_id, evidence)

    def evidence(self, point_id: str) -> list[Evidence]:
        """What restore tests of a point saw, oldest first."""
        return self._log.evidence(point_id)

    def verify(
        self,
        progress: Callable[[int], None] | None = None,
        *,
        choose: Callable[[Mapping[str, int]], Collection[str]] | None = None,
        checked: Callable[[str, bool], None] | None = None,
    ) -> VerifyReport:
        """Read and check every object; `progress` is told the bytes checked since its last call.

        They add up to `stats().stored_bytes` if nobody writes meanwhile. `choose` says which packs
        to read of all and their sizes, `checked` is told of each whether it was whole.
        """
        return self._verifier(progress, choose, checked).run()

    def _verifier(
        self,
        progress: Callable[[int], None] | None = None,
        choose: Callable[[Mapping[str, int]], Collection[str]] | None = None,
        checked: Callable[[str, bool], None] | None = None,
    ) -> Verifier:
        return Verifier(
            self._store,
            self._config,
            self._master,
            self._codec,
            self._keys,
            progress,
            choose,
            checked,
        )

    def repair(
        self,
        other: "Repository | None" = None,
        progress: Callable[[int], None] | None = None,
        *,
        choose: Callable[[Mapping[str, int]], Collection[str]] | None = None,
        checked: Callable[[str, bool], None] | None = None,
    ) -> RepairReport:
        """Verify, and mend what is damaged; see `verify` for the arguments.

        `other` is a copy of this repository that whole bytes are taken from; ConfigurationError if
        its key is another. What stays lost is read again by the next backup of the same disk.
        RunConflictError while another prunes or repairs.
        """
        if other is not None and other.key_id != self.key_id:
            raise ConfigurationError(
                f"{other.stats().location} is no copy of {self._store.location}, for its key is "
                "another; name a repository that `atoll repo copy` made of this one."
            )
        with self._maintenance():
            repairer = Repairer(
                self._store,
                self._master,
                self._codec,
                self._keys,
                self._source,
                other._store if other is not None else None,
                other._source.get if other is not None else None,
                self._pack_bytes,
            )
            report = repairer.run(
                self._verifier(progress, choose, checked),
                lambda: self._verifier(choose=lambda sizes: ()),
            )
            self._log = PointLog(self._store, self._master)
            return report

    def kind_of(self, place: ObjectStore) -> Kind:
        """What lies at a place that this repository is to be copied to."""
        return kind_of(self._store, place)

    def mirror_to(
        self,
        place: ObjectStore,
        *,
        begin: Callable[[int], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> MirrorReport:
        """Make a place the same repository as this, or have it hold what was added since.

        All that is copied is opened and checked first; for the rest see `mirror`.
        """
        inspect = ByKey(self._master, self._codec, self._keys)
        return mirror(self._store, place, inspect, begin=begin, progress=progress)

    def stats(self) -> RepositoryStats:
        """How much there is."""
        points = self.points()
        sizes = {
            folder: [info.size_bytes for info in own_objects(self._store, folder)]
            for folder in _FOLDERS
        }
        return RepositoryStats(
            location=self._store.location,
            chunk_bytes=self._config.chunk_bytes,
            points=len(points),
            logical_bytes=sum(disk.size_bytes for point in points for disk in point.disks),
            chunks=self._source.refresh().chunks,
            packs=len(sizes[PACKS]),
            stored_bytes=sum(map(sum, sizes.values())) + len(self._store.get("config")),
        )

    def forget(self, ids: Set[str]) -> list[RestorePoint]:
        """Remove restore points with their evidence; gives those that were there.

        Their space comes back with the next `prune`. PointHeldError if one of them is on hold,
        RunConflictError while another forgets or prunes; then nothing was removed.
        """

        def named(points: Sequence[RestorePoint], holds: Holds) -> Set[str]:
            refuse_held(holds, [point for point in points if point.id in ids], time.time())
            return ids

        return self.forget_chosen(named)

    def forget_chosen(
        self, choose: Callable[[Sequence[RestorePoint], Holds], Set[str]]
    ) -> list[RestorePoint]:
        """The same for the points whose ids `choose` gives, of all points and holds there are.

        Nobody else forgets meanwhile, and a hold that is set after `choose` was told of all others
        is on a point that is still there, or tells so.
        """
        with self._maintenance(), forgetting(self._store) as session:
            points = self._log.every_point()
            ids = choose(points, self._holds.read())
            session.confirm()
            gone = self._log.forget(ids)
            self._holds.remove_of(ids)
            return gone

    def hold(self, point_id: str, reason: str, until: float | None = None) -> PointHold:
        """Have a point stay until a time, or until released, whoever wants to forget it.

        UnknownPointError if there is no such point, or it was forgotten while this was done.
        """
        hold = self._holds.put(point_id, reason, until)
        self._confirm_hold(hold)
        return hold

    def take_hold(self, hold: PointHold) -> bool:
        """Set a hold that another repository has on the same point; False if it is set already.

        UnknownPointError as for `hold`.
        """
        if not self._holds.take(hold):
            return False
        self._confirm_hold(hold)
        return True

    def _confirm_hold(self, hold: PointHold) -> None:
        wait_for_forgetting(self._store)
        if all(point.id != hold.point for point in self.points()):
            self._holds.remove(hold.name)
            raise UnknownPointError(
                f"There is no restore point {hold.point} to hold, or it was just forgotten; list "
                "the points."
            )

    def holds(self) -> Holds:
        """All holds, also those whose time is over."""
        return self._holds.read()

    def release(self, hold: str) -> None:
        """Remove a hold by its name, or by that of its damaged object. Twice is harmless."""
        self._holds.remove(hold.removeprefix(HOLDS))

    def prune_plan(
        self, without: Set[str] = frozenset(), progress: Callable[[int], None] | None = None
    ) -> PrunePlan:
        """What a `prune` would do were these points forgotten; `progress` is told pages followed."""
        return self._pruner(progress).plan(without)

    def prune(
        self,
        *,
        repack_bytes: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> PruneReport:
        """Give back the space of what no restore point needs, beside writers and readers.

        What they may rely on waits for the next prune. At most `repack_bytes` are moved out of
        packs that waste space. RunConflictError while another forgets or prunes.
        """
        with self._maintenance():
            return self._pruner(progress).run(repack_bytes)

    def rebuild_index(self) -> Sequence[str]:
        """List packs again that lost their index segment; RunConflictError while another prunes."""
        with self._maintenance():
            return rebuild_index(self._store, self._master, self._source, self._keys)

    @contextmanager
    def _maintenance(self) -> Iterator[None]:
        lock = self._store.maintain()
        try:
            yield
        finally:
            lock.release()

    def _pruner(self, progress: Callable[[int], None] | None) -> Pruner:
        return Pruner(
            self._store, self._master, self._source, self._keys, progress, self._pack_bytes
        )

    def _begin(self) -> Session:
        with self._lock:
            if self._session is not None and self._session.failed:
                failed = self._session
                self._end_session()
                # Else an image that was given out would be missed only at the commit, as damage.
                failed.tell()
            if self._session is None:
                self._session = Session(
                    self._store,
                    self._master,
                    self._codec,
                    self._keys,
                    self._source,
                    self._pack_bytes,
                )
            return self._session

    def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _settle(self, name: str) -> None:
        """Make readable what this process stored and has not committed yet."""
        with self._lock:
            if self._session is not None and name in self._session.made:
                self._session.flush()

    def _kept(self, root: str) -> Callable[[], None]:
        """Have an image stay until what this returns is called; what is not committed does anyway."""
        with self._lock:
            if self._session is not None and root in self._session.made:
                return lambda: None
        let_go = self._readers.keep(root)
        if not any(disk.root == root for point in self.points() for disk in point.disks):
            let_go()
            raise UnknownPointError(
                "The restore point was forgotten a moment ago; list the points and choose another."
            )
        return let_go

    def _parent(
        self, session: Session, image: DiskImage
    ) -> tuple[ChunkTable | None, Sequence[Extent]]:
        """The parent's table, certain to stay, and which of its chunks are lost.

        No table if a part of that is lost; then everything has to be read.
        """
        session.keep([image.root])
        self._check_roots(session, [image.root])
        self._settle(image.root)
        lost = lost_extents(image, self._source.get, session.lost) if session.lost else []
        if lost is None:
            return None, ()
        return self._table(self._record(image)), lost

    def _to_read(self, extents: Iterable[Extent], table: ChunkTable, size: int) -> list[Extent]:
        unit = self._cutter.shortest_bytes
        return ranges_to_read(extents, table, size, unit, self._source.length)

    def _table(self, record: DiskRecord) -> ChunkTable:
        return ChunkTable(record, self._source.get)

    def _record(self, image: DiskImage) -> DiskRecord:
        record = DiskRecord.from_bytes(self._source.get(name_of(image.root)))
        if record.chunk_bytes != self._config.chunk_bytes:
            raise RepositoryDamagedError(
                f"Disk image {image.root[:16]} has chunks of {record.chunk_bytes} bytes and the "
                f"repository {self._config.chunk_bytes}; verify the repository."
            )
        return record

    def _check_lost(self, session: Session, points: Sequence[RestorePoint]) -> None:
        lost = session.found_lost()
        if lost and any(
            relies_on(disk, self._source.get, lost) for point in points for disk in point.disks
        ):
            raise RepositoryDamagedError(
                "Something that this backup found stored already was lost, as a repair noted meanwhile, "
                "so nothing was committed; run it again, and it is stored anew."
            )

    def _check_named(self, session: Session, points: Sequence[RestorePoint]) -> None:
        disks = [disk for point in points for disk in point.disks]
        names = [disk.root for disk in disks if disk.root]
        names += (blob for point in points for blob in point.blobs)
        if any(not disk.root for disk in disks):
            names.append("")
        self._check_roots(session, names)

    def _check_roots(self, session: Session, names: Sequence[str]) -> None:
        unknown = set(names) - session.made
        if not unknown:
            return
        for point in self.points():
            unknown -= {disk.root for disk in point.disks} | point.blobs
        if unknown:
            raise RepositoryDamagedError(
                f"Disk image or blob {min(unknown)[:16]!r} is neither of a committed restore point "
                "nor stored since the last commit, so nothing was committed; copy it again."
            )
