"""VMs over plain image files, and their tree mounted by a server in this process."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from atoll.blocks.readers import FileReader
from atoll.fuse.server import FuseServer
from atoll.island.served import ServedDisk, ServedVm
from atoll.island.tree import ServedTree
from atoll.model.consistency import Consistency
from atoll.model.errors import AtollError

TAKEN_AT = 1_700_000_000.0


def served_vm(name: str, images: Sequence[Path], opened: list[str] | None = None) -> ServedVm:
    """A VM whose disks are these files; what is opened is written into `opened`."""

    def disk(number: int, image: Path) -> ServedDisk:
        def open_disk() -> FileReader:
            if opened is not None:
                opened.append(f"{name}/{number}")
            return FileReader(image)

        file = f"{name}.vmdk" if number == 1 else f"{name}_{number - 1}.vmdk"
        size = image.stat().st_size if image.exists() else 0
        return ServedDisk(
            2000 + number, f"disk {number}", f"[store] {name}/{file}", size, open_disk
        )

    return ServedVm(
        name=name,
        instance_uuid=f"uuid-{name}",
        run="r1",
        taken_at=TAKEN_AT,
        consistency=Consistency.APP,
        guest_os="debian12_64Guest",
        configuration=lambda: {f"{name}.vmx": b'displayName = "x"\n', f"{name}.nvram": bytes(74)},
        disks=tuple(disk(number, image) for number, image in enumerate(images, 1)),
    )


class MountedTree:
    """What a test needs of it: where it is, what is open, and what readers met."""

    def __init__(self, top: Path, tree: ServedTree, server: FuseServer) -> None:
        self.top = top
        self.tree = tree
        self.server = server
        self.failures: list[AtollError] = []


@contextmanager
def mounted_tree(
    vms: Sequence[ServedVm], top: Path, *, allow_other: bool = False
) -> Iterator[MountedTree]:
    """The tree of these VMs on a directory that is made for it."""
    top.mkdir(exist_ok=True)
    tree = ServedTree(vms)
    failures: list[AtollError] = []
    try:
        with FuseServer(
            tree.root,
            top,
            find=tree.views,
            source="test",
            allow_other=allow_other,
            on_failure=failures.append,
        ) as server:
            mounted = MountedTree(top, tree, server)
            mounted.failures = failures
            yield mounted
    finally:
        tree.close()
