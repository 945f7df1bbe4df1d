"""Trees in, the same trees out; what did not change is stored once."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.catalogue.catalogue import Catalogue, MemoryPieces, Rows
from atoll.catalogue.comparing import ChangeKind, compare
from atoll.catalogue.entries import STAT, CatalogueEntry
from atoll.catalogue.pages import NamesPage, pack_stats, targets_of, unpack_stats
from atoll.catalogue.sorting import Sorted, sort_tables
from atoll.filesystems.interface import EntryKind, Fault
from atoll.filesystems.tables import INODE, inode_table, name_table, pack_inodes, pack_names
from atoll.model.errors import (
    NotFoundInPointError,
    RepositoryDamagedError,
    UnsupportedFormatError,
)
from catalogue_parts import ROOT, Node, Tree, catalogue, pieces, tables

NAMES = st.one_of(
    st.binary(min_size=1, max_size=12),
    st.sampled_from(
        [b"a", b"a-b", b"a.b", b"ab", b"file_0001", b"file_0002", b"x" * 255, b"\xff\n"]
    ),
).filter(lambda name: name not in (b".", b"..") and b"/" not in name and b"\0" not in name)
NODES = st.builds(
    Node,
    kind=st.sampled_from([EntryKind.FILE, EntryKind.FIFO]),
    size=st.integers(0, 1 << 60),
    mtime=st.integers(-(1 << 35), 1 << 35),
    uid=st.integers(0, (1 << 32) - 1),
)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Up to forty names, some of them directories of others."""
    tree: dict[bytes, Node] = {}
    directories = [b""]
    for _ in range(draw(st.integers(0, 40))):
        path = draw(st.sampled_from(directories)) + b"/" + draw(NAMES)
        if path in tree:
            continue
        what = draw(st.sampled_from(["file", "file", "directory", "symlink"]))
        if what == "directory":
            tree[path] = Node(EntryKind.DIRECTORY)
            directories.append(path)
        elif what == "symlink":
            tree[path] = Node(EntryKind.SYMLINK, target=draw(st.binary(min_size=1).map(no_zeros)))
        else:
            tree[path] = draw(NODES)
    return tree


def no_zeros(text: bytes) -> bytes:
    return text.replace(b"\0", b"0")


def everything(of: Catalogue) -> list[CatalogueEntry]:
    found = []
    for page in of.pages:
        rows = Rows(of, page)
        found += [rows.entry(row) for row in range(len(rows))]
    return found


def seen(of: Catalogue) -> dict[bytes, Node]:
    """A catalogue as the tree it was made of."""
    return {
        entry.path.encode("utf-8", "surrogateescape"): Node(
            entry.kind or EntryKind.BLOCK,
            entry.size,
            entry.mtime_ns // 10**9,
            entry.uid,
            (entry.target or "").encode("utf-8", "surrogateescape"),
        )
        for entry in everything(of)
        if entry.name
    }


@given(trees(), st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_a_tree_comes_back_in_order(tree: Tree, seed: int) -> None:
    made = catalogue((tree, ("/",)), seed=seed)
    assert seen(made) == tree
    entries = everything(made)
    assert entries[0].path == "/"
    assert entries[0].kind is EntryKind.DIRECTORY
    raw = [entry.inner.encode("utf-8", "surrogateescape") for entry in entries]
    keys = [
        (path.rpartition(b"/")[0].replace(b"/", b"\0"), path.rpartition(b"/")[2]) for path in raw
    ]
    assert keys == sorted(keys)
    for path, node in tree.items():
        text = path.decode("utf-8", "surrogateescape")
        if "/./" not in text and "/../" not in text:
            volume, inner = made.locate(text)
            directory, _, name = inner.encode("utf-8", "surrogateescape").rpartition(b"/")
            found = made.look_up(volume, directory, name)
            assert found is not None
            assert (found.size, found.kind) == (node.size, node.kind)


@given(trees(), trees())
@settings(deadline=None, max_examples=60)
def test_changes_are_those_of_brute_force(before: Tree, after: Tree) -> None:
    found = compare(catalogue((before, ("/",))), catalogue((after, ("/",)), seed=1))
    changes = {
        change.entry.path.encode("utf-8", "surrogateescape"): change.kind
        for change in found
        if change.content
    }
    expected = dict.fromkeys(before.keys() - after.keys(), ChangeKind.REMOVED)
    expected |= dict.fromkeys(after.keys() - before.keys(), ChangeKind.ADDED)
    for path in before.keys() & after.keys():
        old, new = before[path], after[path]
        if (old.kind, old.size, old.mtime, old.target) != (
            new.kind,
            new.size,
            new.mtime,
            new.target,
        ):
            expected[path] = ChangeKind.CHANGED
    assert changes == expected


def large(count: int) -> dict[bytes, Node]:
    rnd = random.Random(7)
    tree: dict[bytes, Node] = {}
    for number in range(count // 50):
        directory = b"/d%05d" % number
        tree[directory] = Node(EntryKind.DIRECTORY)
        for each in range(49):
            tree[directory + b"/%s-%d" % (rnd.randbytes(4).hex().encode(), each)] = Node(size=each)
    return tree


def test_an_insertion_changes_one_page_of_names_and_a_write_none() -> None:
    tree = large(20_000)
    first = sort_tables(tables(tree), ROOT)
    made = pieces((first, ("/",)))
    assert len(made) > 20
    again = pieces((sort_tables(tables(tree, seed=5), ROOT), ("/",)))
    assert made == again
    # The same inodes, as a real tree has them: only the new file has a number of its own.
    path = b"/d00200/" + b"written"
    changed = pieces((_with(tree, path), ("/",)))
    fresh = set(changed) - set(made)
    assert sum(piece.startswith(b"ATOLCTN") for piece in fresh) <= 2
    assert sum(piece.startswith(b"ATOLCTS") for piece in fresh) <= 2
    written = sort_tables(tables(tree), ROOT)
    written.stats["mtime"][12_345] += 1
    fresh = set(pieces((written, ("/",)))) - set(made)
    assert [piece[:7] for piece in fresh] == [b"ATOLCTS"]


def _with(tree: Tree, path: bytes) -> Sorted:
    """The same tables and one more name, with an inode behind all others."""
    found = tables(tree)
    rows = np.zeros(1, INODE)
    rows["inode"], rows["kind"], rows["mode"] = 1 << 20, 1, 0o600
    parent = sorted(tree).index(path.rpartition(b"/")[0]) + 11
    name = path.rpartition(b"/")[2]
    more = pack_names(
        np.array([parent], np.uint64),
        np.array([1 << 20], np.uint64),
        np.array([len(name)], np.uint16),
        name,
    )
    return sort_tables([*found, inode_table(pack_inodes(rows, [b""])), name_table(more)], ROOT)


def test_loops_and_lost_directories_are_left_out_and_told() -> None:
    tree = {b"/a": Node(EntryKind.DIRECTORY), b"/a/b": Node(EntryKind.DIRECTORY)}
    found = tables(tree)
    loop = pack_names(
        np.array([12, 99], np.uint64),  # in /a/b, and in what no path leads to
        np.array([11, 12], np.uint64),
        np.array([4, 4], np.uint16),
        b"looplost",
    )
    fault = Fault("12", "a directory has an entry that does not fit into it")
    entries = sort_tables([*found, name_table(loop), fault], ROOT)
    assert [path for path, _ in entries.faults] == [b"/a/b/loop", b"/a/b"]
    made = MemoryPieces(pieces((entries, ("/",))))
    names = [entry.path for entry in everything(Catalogue(made, made.names))]
    assert names == ["/", "/a", "/a/b", "/a/b/loop"]


def test_a_name_without_an_inode_is_damaged() -> None:
    found = tables({b"/x": Node(), b"/y": Node()})
    kept = [table for table in found if not (hasattr(table, "rows") and 11 in table.rows["inode"])]
    rows = np.concatenate([t.rows[t.rows["inode"] != 11] for t in found if hasattr(t, "rows")])
    entries = sort_tables([*kept, inode_table(pack_inodes(rows, [b""] * len(rows)))], ROOT)
    made = MemoryPieces(pieces((entries, ("/",))))
    kinds = {entry.path: entry.kind for entry in everything(Catalogue(made, made.names))}
    assert kinds == {"/": EntryKind.DIRECTORY, "/x": None, "/y": EntryKind.FILE}


def test_mounts_hide_what_is_below_them_and_symlinks_are_followed() -> None:
    root = {
        b"/home": Node(EntryKind.DIRECTORY),
        b"/home/hidden": Node(),
        b"/link": Node(EntryKind.SYMLINK, target=b"home/ann"),
        b"/round": Node(EntryKind.SYMLINK, target=b"/round"),
    }
    home = {b"/ann": Node(EntryKind.DIRECTORY), b"/ann/letter": Node(size=5)}
    made = catalogue((root, ("/",)), (home, ("/home",)), ({b"/raw": Node()}, ()))
    assert [entry.path for entry in made.list("/")] == ["/home", "/link", "/round"]
    assert [entry.path for entry in made.list("/home")] == ["/home/ann"]
    assert [entry.path for entry in made.list("/link")] == ["/home/ann/letter"]
    assert made.stat("/link/letter").size == 5
    assert [entry.path for entry in made.list("disk1:part3:/")] == ["disk1:part3:/raw"]
    assert made.stat("disk1:part1:/home/hidden").path == "disk1:part1:/home/hidden"
    with pytest.raises(NotFoundInPointError, match="no /home/hidden"):
        made.stat("/home/hidden")
    with pytest.raises(NotFoundInPointError, match="loop of symlinks"):
        made.list("/round")
    with pytest.raises(NotFoundInPointError, match="must begin with /"):
        made.stat("etc")


def test_subvolumes_of_one_volume_are_found_where_each_is_mounted() -> None:
    tree = {
        b"/@": Node(EntryKind.DIRECTORY),
        b"/@/etc": Node(EntryKind.DIRECTORY),
        b"/@/etc/hosts": Node(size=7),
        b"/@home": Node(EntryKind.DIRECTORY),
        b"/@home/ann": Node(size=5),
        b"/@snapshots": Node(EntryKind.DIRECTORY),
    }
    made = catalogue((tree, {"/": "/@", "/home": "/@home"}))
    assert [entry.path for entry in made.list("/")] == ["/etc"]
    assert made.stat("/etc/hosts").size == 7
    assert [entry.path for entry in made.list("/home")] == ["/home/ann"]
    assert made.stat("disk1:part1:/@home/ann").path == "/home/ann"
    assert made.shown(0, "/@snapshots") == "disk1:part1:/@snapshots"
    assert made.shown(0, "/@") == "/"
    assert made.shown(0, "/") == "disk1:part1:/"


def test_pages_that_are_not_what_was_written_are_refused() -> None:
    page = NamesPage([b"", b"/a"], np.array([2, 1], np.uint32), b"\0b\0c\0")
    data = page.to_bytes()
    assert list(NamesPage.from_bytes(data).rows()) == list(page.rows())
    stats = np.zeros(3, STAT)
    stats["kind"], stats["target"], stats["inode"] = [2, 1, 3], [0, 0, 4], [9, 3, 1 << 63]
    packed = pack_stats(stats, [b"goal"])
    back, text = unpack_stats(packed)
    assert back.tolist() == stats.tolist()
    assert targets_of(back, text) == [b"", b"", b"goal"]
    for whole, read in ((data, NamesPage.from_bytes), (packed, unpack_stats)):
        for bad in (whole[:-1], whole + b"\0", b"x" + whole[1:], whole[:9], b""):
            with pytest.raises(RepositoryDamagedError):
                read(bad)
    with pytest.raises(RepositoryDamagedError):
        Catalogue(MemoryPieces([b"nothing"]), MemoryPieces([b"nothing"]).names)


def test_tables_that_no_honest_parser_sends_are_refused() -> None:
    rows = np.zeros(2, INODE)
    rows["inode"], rows["kind"] = [1, 2], [1, 3]
    rows["target"] = [0, 3]
    assert len(inode_table(pack_inodes(rows, [b"abc"])).rows) == 2
    for field, value in (
        ("kind", 9),
        ("mode", 0o10000),
        ("inode", 0),
        ("mtime_nanos", 10**9),
        ("target", 4),
        ("mtime", 1 << 50),
    ):
        bad = rows.copy()
        bad[field][1] = value
        with pytest.raises(UnsupportedFormatError):
            inode_table(pack_inodes(bad, [b"abc"]))
    one = np.ones(1, np.uint64)
    for name in (b".", b"..", b"a/b", b"a\0b", b"x" * 800):
        with pytest.raises(UnsupportedFormatError):
            name_table(pack_names(one, one, np.array([len(name)], np.uint16), name))
    with pytest.raises(UnsupportedFormatError):
        name_table(b"\1\0\0\0")
