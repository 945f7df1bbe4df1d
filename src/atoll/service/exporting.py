"""The disks of a restore point as NBD exports, for software that reads or backs them up itself."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from atoll.model.errors import UnknownPointError
from atoll.model.extents import Extent
from atoll.model.points import DiskImage, RestorePoint
from atoll.nbd.contexts import Context, changed_contexts
from atoll.nbd.exports import Export
from atoll.repository.repository import Repository


@contextmanager
def point_exports(
    repository: Repository,
    point: RestorePoint,
    disks: Sequence[DiskImage],
    since: RestorePoint | None = None,
) -> Iterator[list[Export]]:
    """`VM/disk1` and so on for these disks of the point, readable while the block lasts.

    A disk keeps the number it has in the point, whichever are chosen. With
    `since`, another point of the same VM, each says what changed against it: exact
    to the repository's chunk, all of a disk that the older point does not have.
    UnknownPointError when the two are of different VMs.
    """
    if since is not None and since.instance_uuid != point.instance_uuid:
        raise UnknownPointError(
            f"{since.vm}@{since.run} is of another VM than {point.vm}@{point.run}; name two points of"
            " one VM to learn what changed."
        )
    with ExitStack() as stack:
        exports = []
        for number, image in enumerate(point.disks, 1):
            if image not in disks:
                continue
            reader = repository.open_disk(image)
            stack.callback(reader.close)
            contexts = _changed(repository, image, since) if since is not None else ()
            description = f"{image.label} of {point.vm}@{point.run}"
            exports.append(Export(f"{point.vm}/disk{number}", reader, description, contexts))
        yield exports


def _changed(repository: Repository, image: DiskImage, since: RestorePoint) -> tuple[Context, ...]:
    older = next((disk for disk in since.disks if disk.key == image.key), None)
    if older is None:
        changed = iter([Extent(0, image.size_bytes)])
    else:
        changed = repository.changed_extents(older, image)
    return changed_contexts(since.run, image.size_bytes, changed)
