"""Which ranges of a disk may differ between two snapshots, without asking the hypervisor."""

from collections.abc import Mapping, Sequence

import numpy as np

from atoll.blocks.extent_map import DiskMap
from atoll.blocks.ranges import Int64Array, columns, extents_of, merge_ranges
from atoll.model.extents import Extent

_HOLE = -1


def changed_disk_extents(
    old: DiskMap | None, new: DiskMap, changed: Mapping[str, Sequence[Extent]]
) -> list[Extent]:
    """Ranges of the new disk that may differ from the old one; ordered, merged, none missed.

    A byte can only differ in two ways. Its place on the LUN is the same in both
    maps and the storage wrote there: `changed` (LUN name → ranges the storage
    says may differ) seen through the new map. Or its place is another one: it
    was moved, newly allocated, became a hole, or lies past the old end. Both
    kinds are listed. Without an old map everything is listed. A LUN of the new
    map that `changed` does not name is taken as changed throughout, since
    nothing is known about it; an empty sequence says that nothing changed.
    Assumes that a LUN name means the same LUN in both maps.
    """
    if new.size_bytes == 0:
        return []
    if old is None:
        return [Extent(0, new.size_bytes)]
    found: list[Extent] = []
    for lun in new.luns:
        ranges = changed.get(lun)
        found += new.project(lun, new.lun_extents(lun) if ranges is None else ranges)
    starts, ends = columns(found)
    moved_starts, moved_ends = _remapped(old, new)
    return extents_of(
        *merge_ranges(np.concatenate((starts, moved_starts)), np.concatenate((ends, moved_ends)))
    )


def _remapped(old: DiskMap, new: DiskMap) -> tuple[Int64Array, Int64Array]:
    """Ranges whose place differs between the maps, by comparing them between all their borders."""
    borders = np.unique(
        np.concatenate(
            (
                np.array([0, old.size_bytes, new.size_bytes], dtype=np.int64),
                old.disk_offset,
                old.disk_end,
                new.disk_offset,
                new.disk_end,
            )
        )
    )
    borders = borders[borders <= new.size_bytes]
    starts, ends = borders[:-1], borders[1:]
    numbers = {name: at for at, name in enumerate(dict.fromkeys((*old.luns, *new.luns)))}
    old_lun, old_offset = _places(old, starts, numbers)
    new_lun, new_offset = _places(new, starts, numbers)
    differs = (old_lun != new_lun) | (old_offset != new_offset) | (starts >= old.size_bytes)
    return starts[differs], ends[differs]


def _places(
    disk: DiskMap, at: Int64Array, numbers: Mapping[str, int]
) -> tuple[Int64Array, Int64Array]:
    """LUN number and LUN offset of each disk offset; both `_HOLE` where there is none."""
    lun = np.full(len(at), _HOLE, dtype=np.int64)
    offset = np.full(len(at), _HOLE, dtype=np.int64)
    if len(disk):
        row = np.searchsorted(disk.disk_offset, at, side="right") - 1
        inside = (row >= 0) & (at < disk.disk_end[row])
        row = row[inside]
        number = np.array([numbers[name] for name in disk.luns], dtype=np.int64)
        lun[inside] = number[disk.lun_index[row]]
        offset[inside] = disk.lun_offset[row] + at[inside] - disk.disk_offset[row]
    return lun, offset
