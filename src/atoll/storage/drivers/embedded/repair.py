"""Finishes or clears what a crash cut short."""

from pathlib import Path

from atoll.storage.drivers.embedded.btrfs import destroy_subvolume, is_subvolume
from atoll.storage.drivers.embedded.exports import Exports
from atoll.storage.drivers.embedded.pool import Pool, made_name, settle


class Repair:
    """Every method but `release` and `reconcile` wants the group's lock held."""

    def __init__(self, pool: Pool, exports: Exports) -> None:
        self._pool = pool
        self._records = pool.records
        self._exports = exports

    def release(self) -> None:
        """Let every stopped daemon run whose stopper is dead; the living hold the group's lock."""
        for group in self._exports.daemons():
            with self._pool.lock_if_free(group) as ours:
                if ours:
                    self._exports.release(group)

    def finish(self, group: str) -> list[str]:
        """What must be right before a group is changed: its daemon runs, removals are done."""
        done = []
        if self._exports.release(group):
            done.append(f"Let the iSCSI daemon of LUN group {group} run again.")
        return done + self.finish_removals(group)

    def finish_removals(self, group: str) -> list[str]:
        """Remove what the records have forgotten."""
        whole, snapshots = self._pool.group(group), self._pool.snapshot_directory(group)
        done = []
        for owed in self._records.removals():
            path = self._pool.root / owed
            if path == whole or path.parent in (whole, snapshots):
                self.discard(path)
                if path == whole and snapshots.is_dir() and not any(snapshots.iterdir()):
                    snapshots.rmdir()
                self._records.removed(owed)
                done.append(f"Removed {owed}, whose deletion was cut short.")
        return done

    def discard(self, path: Path) -> None:
        """Remove a subvolume or an image; absent is success."""
        if is_subvolume(path):
            destroy_subvolume(path)
        else:
            path.unlink(missing_ok=True)

    def reconcile(self) -> list[str]:
        """All groups in turn; one sentence per repair, and one per thing no record explains."""
        groups = {record.name for record in self._records.groups()}
        for path in self._pool.group_directory.iterdir():
            groups.add(made_name(path.name) or path.name)
        for path in self._pool.snapshots_directory.iterdir():
            groups.add(path.name)
        for owed in self._records.removals():
            groups.add(Path(owed).parts[1])  # groups/<group>/… and snapshots/<group>/…
        done = []
        for group in sorted(groups | set(self._exports.daemons())):
            with self._pool.lock(group):
                done += self._reconcile_group(group)
        return done

    def _reconcile_group(self, group: str) -> list[str]:
        done = self.finish(group)
        record = self._records.group(group)
        claimed = {self._pool.group(group)} if record else set()
        done += self._tidy(self._pool.group_directory, claimed, only=group)
        if record is None:
            if self._exports.stop(group):
                done.append(f"Stopped the iSCSI daemon of {group}, which is no LUN group.")
            return done + self._tidy(self._pool.snapshot_directory(group), set())
        images = {self._pool.image(group, lun.name) for lun in self._records.luns(group)}
        done += self._tidy(self._pool.group(group), images)
        snapshots = {
            self._pool.snapshot(group, taken.name) for taken in self._records.snapshots(group)
        }
        done += self._tidy(self._pool.snapshot_directory(group), snapshots)
        if all(path.exists() for path in images):
            done += self._exports.apply(group)
        return done

    def _tidy(self, directory: Path, claimed: set[Path], only: str | None = None) -> list[str]:
        """Finish claimed objects, clear those never recorded, tell of any other stranger.

        Strangers stay: a name without our working prefix was once recorded, so
        it may hold data that an older copy of the records has forgotten.
        """
        done = []
        for path in sorted(claimed):
            if settle(path):
                done.append(f"Finished {self._pool.relative(path)}, whose making was cut short.")
            elif not path.exists():
                done.append(
                    f"{self._pool.relative(path)} is recorded but is not there; restore it or "
                    "delete it by name."
                )
        present = sorted(directory.iterdir()) if directory.is_dir() else []
        for path in present:
            unmade = made_name(path.name)
            if only is not None and only not in (path.name, unmade):
                continue
            if unmade is not None:
                self.discard(path)
                done.append(f"Cleared {self._pool.relative(path)}, which was never finished.")
            elif path not in claimed:
                done.append(
                    f"{self._pool.relative(path)} is in no record and was left alone; see what it "
                    "is and remove it by hand."
                )
        return done
