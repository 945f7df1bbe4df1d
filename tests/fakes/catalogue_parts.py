"""Catalogues of trees that a test makes up, without a disk."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from atoll.catalogue.build import pages_of
from atoll.catalogue.catalogue import Catalogue, MemoryPieces
from atoll.catalogue.contents import CatalogueVolume, Contents, pack_contents
from atoll.catalogue.sorting import Sorted, sort_tables
from atoll.filesystems.interface import EntryKind
from atoll.filesystems.tables import (
    INODE,
    KIND_NUMBERS,
    InodeTable,
    NameTable,
    inode_table,
    name_table,
    pack_inodes,
    pack_names,
)

ROOT = 2
Mounts = tuple[str, ...] | dict[str, str]
"""Where a volume is mounted; and, where not all of it is, what of it."""


@dataclass(frozen=True)
class Node:
    """What a test says of a path."""

    kind: EntryKind = EntryKind.FILE
    size: int = 0
    mtime: int = 1_700_000_000
    uid: int = 0
    target: bytes = b""


Tree = Mapping[bytes, Node]
"""By path, as b"/etc/passwd"; directories must be there themselves, the root need not."""


def tables(tree: Tree, seed: int = 0) -> list[InodeTable | NameTable]:
    """What a scan would send, in an order that the seed chooses."""
    rnd = random.Random(seed)
    numbers = {path: number for number, path in enumerate(sorted(tree), 11)} | {b"": ROOT}
    nodes = [(ROOT, Node(EntryKind.DIRECTORY)), *((numbers[p], node) for p, node in tree.items())]
    names = [
        (numbers[path.rpartition(b"/")[0]], numbers[path], path.rpartition(b"/")[2])
        for path in tree
    ]
    rnd.shuffle(nodes)
    rnd.shuffle(names)
    rows = np.zeros(len(nodes), INODE)
    for at, (number, node) in enumerate(nodes):
        rows[at]["inode"], rows[at]["size"], rows[at]["mtime"] = number, node.size, node.mtime
        rows[at]["ctime"], rows[at]["uid"], rows[at]["mode"] = node.mtime + 5, node.uid, 0o644
        rows[at]["nlink"], rows[at]["ctime_nanos"] = 1, number
        rows[at]["kind"], rows[at]["target"] = KIND_NUMBERS[node.kind], len(node.target)
    half = len(names) // 2
    found: list[InodeTable | NameTable] = [
        inode_table(pack_inodes(rows[:1], [nodes[0][1].target])),
        *(
            name_table(
                pack_names(
                    np.array([parent for parent, _, _ in part], np.uint64),
                    np.array([number for _, number, _ in part], np.uint64),
                    np.array([len(name) for _, _, name in part], np.uint16),
                    b"".join(name for _, _, name in part),
                )
            )
            for part in (names[:half], names[half:])
        ),
        inode_table(pack_inodes(rows[1:], [node.target for _, node in nodes[1:]])),
    ]
    return found


def pieces(*volumes: tuple[Sorted, Mounts]) -> list[bytes]:
    """The pieces of a catalogue of volumes with their mount points."""
    found, pages, described = [], [], []
    for number, (entries, mounts) in enumerate(volumes):
        for info, names, stats in pages_of(entries, number):
            pages.append(info)
            found += [names, stats]
        described.append(
            CatalogueVolume(
                *(f"disk1:part{number + 1}", "ext4", "", "", "clean", tuple(mounts)),
                tuple(mounts.values()) if isinstance(mounts, dict) else ("",) * len(mounts),
                *(len(entries.stats), "", 0, ()),
            )
        )
    return [*found, *pack_contents(Contents(tuple(described), tuple(pages)))]


def catalogue(*trees: tuple[Tree, Mounts], seed: int = 0) -> Catalogue:
    """The catalogue of trees, each with the points where it is mounted."""
    made = MemoryPieces(
        pieces(*((sort_tables(tables(tree, seed), ROOT), mounts) for tree, mounts in trees))
    )
    return Catalogue(made, made.names)
