"""A run's or a restore point's VMs as one read-only file system."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from atoll.fuse import device
from atoll.fuse.server import FuseServer, OnFailure
from atoll.island.served import ServedVm
from atoll.island.tree import ServedTree
from atoll.service.serving import serving
from atoll.service.site import Site


@dataclass(frozen=True)
class Mounted:
    """A tree that can be read; `vms` go with their directories' `names`."""

    directory: Path
    vms: tuple[ServedVm, ...]
    names: tuple[bytes, ...]
    server: FuseServer


@contextmanager
def mounted(
    site: Site,
    reference: str,
    directory: Path,
    *,
    allow_other: bool = False,
    on_failure: OnFailure | None = None,
) -> Iterator[Mounted]:
    """Mount what a reference means (see `serving`) while the block lasts; MountError and its errors.

    The snapshots that are read are kept meanwhile, and let go when this process ends.
    """
    directory = directory.resolve()
    with serving(site, reference) as vms:
        tree = ServedTree(vms)
        try:
            with FuseServer(
                tree.root,
                directory,
                find=tree.views,
                source=reference,
                allow_other=allow_other,
                on_failure=on_failure,
            ) as server:
                yield Mounted(directory, vms, tree.names, server)
        finally:
            tree.close()


def clear_dead_mounts() -> list[str]:
    """Take away mounts whose process was killed; a sentence for each."""
    return [f"The dead mount on {place} was taken away." for place in device.clear_dead()]
