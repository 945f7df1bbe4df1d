"""`-t file`: a VM's volumes mounted as `digits/1`, `digits/2`, … by `atoll mount` in the background.

The tree of the whole run is mounted in `.tree`, views of parts of it are mounted
where scripts read (bind mounts), and the tree is taken away again: whoever
copies the whole directory gets this VM's files and not every VM's disks. The
views keep the tree's process alive; it ends with the last of them. `files` is
the guest's file systems mounted in one another as its fstab has them, where
there is one.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from atoll.cli.output import moment
from atoll.cli.vcb import place
from atoll.cli.vcb.catalog import Origin, unmount_text
from atoll.cli.vcb.console import WARNING, Console
from atoll.cli.vcb.newest import Source, newest
from atoll.cli.vcb.options import ExportOptions, Kind
from atoll.fuse import device
from atoll.model.errors import ConfigurationError, MountError, UnsupportedFormatError
from atoll.model.inventory import VirtualMachine
from atoll.service.site import Site

_MOUNT = (sys.executable, "-c", "from atoll.cli.main import run; run()", "mount", "--background")


def export(site: Site, vm: VirtualMachine, options: ExportOptions, console: Console) -> None:
    """Mount the volumes of the newest run's state of a VM in a claimed directory. AtollError, OSError."""
    if os.geteuid() != 0:
        raise MountError("Mounting a VM's volumes with -t file needs root; run this as root.")
    if options.left_out:
        raise ConfigurationError(
            "-x is for -t fullvm; a mounted volume that is not read costs nothing."
        )
    directory = options.directory
    tree = directory.resolve() / place.TREE
    top, origin = _mount_tree(newest(site, vm), tree, vm)
    console.log(
        f"{vm.name} as of {moment(origin.taken_at)}, run {origin.run}, {origin.consistency}"
    )
    volumes = _volumes(top / "volumes", vm, console)
    (directory / "digits").mkdir(mode=0o700)
    mounted = []
    for number, volume in enumerate(volumes, 1):
        view = directory / "digits" / str(number)
        _show(volume, view)
        mounted.append(str(view))
    console.say("Done mounting")
    for number, view_name in enumerate(mounted, 1):
        console.say(f"Volume {number} mounted at {view_name}")
    if _readable(top / "files"):
        _show(top / "files", directory / "files")
        console.say(f"Volumes also mounted as the guest has them at {directory / 'files'}")
    device.unmount(tree)
    tree.rmdir()
    place.finish(directory, unmount_text(Kind.FILE, vm, origin, mounted))


def _mount_tree(source: Source, tree: Path, vm: VirtualMachine) -> tuple[Path, Origin]:
    """The VM's directory in a mounted tree of the run, and which run it is."""
    tree.mkdir(mode=0o700)
    done = subprocess.run(
        [*_MOUNT, "--json", source.reference, str(tree)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.strip().removeprefix("atoll: ")
        raise MountError(said or f"`atoll mount` ended with status {done.returncode}.")
    rows = [row for row in json.loads(done.stdout) if row["vm"] == source.name]
    if len(rows) > 1:  # VMs of one name have their instance UUIDs in the directories'
        rows = [row for row in rows if row["directory"].endswith(f".{vm.instance_uuid}")]
    if not rows:
        raise MountError(f"{source.reference} does not hold {vm.name} any more; try again.")
    origin = Origin(rows[0]["run"], rows[0]["taken_at"], rows[0]["consistency"])
    return Path(rows[0]["directory"]), origin


def _volumes(directory: Path, vm: VirtualMachine, console: Console) -> list[Path]:
    """The volumes that can be read, in the order of disks and partitions; tells of the others."""
    found = [entry for entry in directory.iterdir() if entry.is_dir()]
    unread = directory / "not-read.txt"
    reasons = unread.read_text("utf-8", "replace").splitlines() if unread.exists() else []
    if not found:
        raise UnsupportedFormatError(
            f"{vm.name} has no volume that Atoll reads ({'; '.join(reasons) or 'it has none'}); "
            "export it with -t fullvm."
        )
    for reason in reasons:
        console.log(f"Not mounted: {reason}", WARNING)
    return sorted(found, key=_place)


def _place(volume: Path) -> tuple[bool, list[int], str]:
    """Partitions and whole disks by their numbers, then logical volumes by name."""
    name = volume.name
    numbers = [int(number) for number in re.findall(r"\d+", name)]
    return (False, numbers, name) if name.startswith("disk") else (True, [], name)


def _readable(directory: Path) -> bool:
    """Whether it is there; a guest without a root file system has none."""
    try:
        next(directory.iterdir(), None)
    except OSError:
        return False
    return True


def _show(source: Path, view: Path) -> None:
    view.mkdir(mode=0o700)
    done = subprocess.run(
        ["mount", "--bind", "--", source, view], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise MountError(f"{view} could not be mounted: {done.stderr.strip()}.")
