"""Opening a restore point's disks for the commands that look into it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from atoll.guestfiles.browser import FileBrowser
from atoll.model.errors import NotFoundInPointError
from atoll.model.points import DiskImage, RestorePoint
from atoll.service.site import Site


@contextmanager
def browsing(site: Site, reference: str) -> Iterator[FileBrowser]:
    """A file browser over all disks of the point."""
    repository = site.repository()
    point = repository.find(reference)
    with ExitStack() as stack:
        disks = []
        for image in point.disks:
            reader = repository.open_disk(image)
            stack.callback(reader.close)
            disks.append((image.label, reader))
        browser = FileBrowser(disks)
        stack.callback(browser.close)
        yield browser


def pick_disk(point: RestorePoint, wanted: str | None) -> DiskImage:
    """The disk called so by label, VMDK name or number from 1; the only one when none is named."""
    if wanted is None and len(point.disks) == 1:
        return point.disks[0]
    for number, disk in enumerate(point.disks, 1):
        if wanted in (disk.label, disk.path, disk.path.rsplit("/", 1)[-1], str(number)):
            return disk
    has = ", ".join(f"{n} = {disk.label}" for n, disk in enumerate(point.disks, 1))
    raise NotFoundInPointError(
        f"{point.vm}@{point.run} has {len(point.disks)} disks; name one with --disk ({has})."
    )
