"""The chain of a disk with VMware snapshots: from the delta that is written to down to its base."""

from typing import NamedTuple, Protocol

from atoll.blocks.vmdk import MAX_DESCRIPTOR_BYTES, Descriptor, Parent, parse_descriptor
from atoll.model.errors import UnsupportedFormatError
from atoll.model.inventory import MAX_DELTAS


class Level(NamedTuple):
    """One disk of a chain: the path of its descriptor, and what that says."""

    path: str
    descriptor: Descriptor


class Folder(Protocol):
    """The datastore that a chain lies on."""

    @property
    def uuid(self) -> str:
        """The file system's UUID as ESX writes it."""
        ...

    def read_file(self, path: str, max_bytes: int) -> bytes:
        """All of a small file. Raises AtollError."""
        ...


def read_chain(datastore: Folder, path: str) -> list[Level]:
    """The disk at `path` and those below it, the base last; each is the one its delta means.

    Raises UnsupportedFormatError for a chain that has no end, is longer than
    vSphere allows, leaves the folder, or whose disks are not those that the
    deltas were made of.
    """
    levels: list[Level] = []
    below: Parent | None = None
    while True:
        if len(levels) > MAX_DELTAS:
            raise UnsupportedFormatError(
                f"{levels[0].path} lies on more than {MAX_DELTAS} disks, which vSphere does not "
                "allow; consolidate the VM's disks and run again."
            )
        text = datastore.read_file(path, MAX_DESCRIPTOR_BYTES)
        level = Level(path, parse_descriptor(text, path))
        if below is not None:
            _check_link(levels[-1], below, level)
        levels.append(level)
        below = level.descriptor.parent
        if below is None:
            return levels
        path = _below(datastore, level.path, below.hint)
        if any(each.path == path for each in levels):
            raise UnsupportedFormatError(
                f"The chain of disks below {levels[0].path} comes back to {path} and has no end; "
                "check the descriptors on the datastore."
            )


def _check_link(above: Level, parent: Parent, below: Level) -> None:
    if below.descriptor.content_id != parent.content_id:
        raise UnsupportedFormatError(
            f"{above.path} is a delta of another content than {below.path} has now (its content id "
            "differs): the disk below was changed by itself or a snapshot was just being removed; "
            "run again, and check the VM's snapshots if it stays so."
        )
    size, expected = below.descriptor.size_bytes, above.descriptor.size_bytes
    if size != expected:
        raise UnsupportedFormatError(
            f"{above.path} is a disk of {expected} bytes on one of {size}, {below.path}; "
            "check the descriptors on the datastore."
        )


def _below(datastore: Folder, path: str, hint: str) -> str:
    """The path of the disk below, which must be in the same folder of the same datastore."""
    folder = path.rpartition("/")[0]
    place, slash, name = hint.rpartition("/")
    own = f"/vmfs/volumes/{datastore.uuid}/{folder.strip('/')}"
    if slash and place.rstrip("/") != own.rstrip("/"):
        raise UnsupportedFormatError(
            f"{path} lies on {hint}, in another folder, as disks of linked clones do, and is not "
            "followed there; make the VM a full clone, or remove its snapshots."
        )
    return f"{folder}/{name}"
