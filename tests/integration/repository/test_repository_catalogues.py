"""Catalogues stay as long as their points, are verified and copied, and cost nothing twice."""

from dataclasses import replace
from pathlib import Path

import pytest

from atoll.catalogue.comparing import compare
from atoll.catalogue.sorting import sort_tables
from atoll.filesystems.interface import EntryKind
from atoll.model.errors import NotFoundInPointError, RepositoryDamagedError
from atoll.model.points import RestorePoint
from atoll.model.progress import Silent
from atoll.repository.keys import KeyFile, create_key_file
from atoll.repository.repository import Repository
from atoll.service.cataloguing import catalogue_now, catalogue_of, note_filters, open_filters
from atoll.service.copying_points import copy_points
from atoll.service.finding import Scope, changes, in_scope, versions
from catalogue_parts import ROOT, Node, Tree, pieces, tables
from repository_parts import MemoryDisk, image, noise, point

TREE: Tree = {b"/etc": Node(EntryKind.DIRECTORY), b"/etc/passwd": Node(size=1000)} | {
    b"/etc/f%d-%s" % (number, noise(number, 4).hex().encode()): Node(size=number)
    for number in range(3000)
}


def commit(repository: Repository, name: str, tree: Tree | None, at: float) -> RestorePoint:
    copied = repository.copy_disk(MemoryDisk(noise(1, 5000)))
    made = point(name, image(copied), at=at)
    if tree is not None:
        entries = sort_tables(tables(tree), ROOT)
        made = _with(made, repository.put_pieces(pieces((entries, ("/",)))))
    repository.commit([made])
    return made


def _with(made: RestorePoint, catalogue: str) -> RestorePoint:
    return replace(made, catalogue=catalogue)


def whole(repository: Repository, made: RestorePoint) -> None:
    opened = catalogue_of(repository, made)
    assert len(opened.list("/etc")) == len(TREE) - 1
    assert opened.stat("/etc/passwd").size == 1000
    assert repository.verify().damaged == ()


def test_an_unchanged_tree_costs_nothing_again(repository: Repository) -> None:
    first = commit(repository, "r1", TREE, 1.0)
    before = repository.stats()
    second = commit(repository, "r2", TREE, 2.0)
    assert second.catalogue == first.catalogue
    after = repository.stats()
    assert after.chunks == before.chunks
    assert after.stored_bytes - before.stored_bytes < 5000  # the point itself, twice
    assert list(changes(repository, "db1@r1", "db1@r2", "/")) == []


def test_prune_leaves_what_points_need_and_takes_the_rest(repository: Repository) -> None:
    first = commit(repository, "r1", TREE, 1.0)
    other = {b"/other%d" % number: Node(size=number) for number in range(3000)}
    commit(repository, "r2", other, 2.0)
    repository.forget({"r2"})
    repository.prune(repack_bytes=1 << 30)
    repository.prune(repack_bytes=1 << 30)
    whole(repository, first)
    repository.forget({"r1"})
    repository.prune(repack_bytes=1 << 30)
    repository.prune(repack_bytes=1 << 30)
    assert repository.stats().packs == 0


def test_a_commit_without_its_catalogue_is_refused(repository: Repository) -> None:
    copied = repository.copy_disk(MemoryDisk(noise(1, 5000)))
    with pytest.raises(RepositoryDamagedError):
        repository.commit([_with(point("r1", image(copied)), "ab" * 32)])


def test_verify_names_the_points_whose_catalogues_are_damaged(
    repository: Repository, place: Path
) -> None:
    made = commit(repository, "r1", TREE, 1.0)
    (pack,) = [path for path in (place / "packs").rglob("*") if path.is_file()]
    data = bytearray(pack.read_bytes())
    for at in range(len(data) // 2, len(data) * 3 // 4, 500):
        data[at] ^= 0xFF
    pack.chmod(0o600)
    pack.write_bytes(data)
    damaged = repository.verify().damaged
    assert damaged
    assert all(each.points == (made.id,) and not each.ranges for each in damaged)
    with pytest.raises(RepositoryDamagedError):
        catalogue_of(repository, made).list("/etc")


def test_copies_with_another_key_take_them_along(repository: Repository, tmp_path: Path) -> None:
    first = commit(repository, "r1", TREE, 1.0)
    grown = dict(TREE) | {b"/etc/new": Node()}
    commit(repository, "r2", grown, 2.0)
    commit(repository, "r3", None, 3.0)
    other = Repository.create(tmp_path / "other", create_key_file(tmp_path / "k2"))
    copy_points(repository, other, Silent())
    copied = {made.id: made for made in other.points()}
    assert copied["r1"].catalogue != first.catalogue  # names depend on the key
    assert copied["r3"].catalogue == ""
    whole(other, copied["r1"])
    old, new = (other.pieces_of(copied[name].catalogue) for name in ("r1", "r2"))
    assert len(set(old) & set(new)) >= len(old) - 6
    found = list(compare(*(catalogue_of(other, copied[name]) for name in ("r1", "r2"))))
    assert "/etc/new" in [change.entry.path for change in found]


def test_versions_put_points_that_agree_together(repository: Repository) -> None:
    later = dict(TREE) | {b"/etc/passwd": Node(size=1001)}
    without = {path: node for path, node in TREE.items() if path != b"/etc/passwd"}
    for name, tree, at in (
        ("r1", TREE, 1.0),
        ("r2", TREE, 2.0),
        ("r3", None, 3.0),
        ("r4", later, 4.0),
        ("r5", without, 5.0),
    ):
        commit(repository, name, tree, at)
    found = versions(repository, "db1", "/etc/passwd", Scope())
    said = [(v.first_run, v.last_run, v.points, v.entry and v.entry.size) for v in found]
    assert said == [("r1", "r2", 2, 1000), ("r4", "r4", 1, 1001), ("r5", "r5", 1, None)]
    with pytest.raises(NotFoundInPointError):
        versions(repository, "db1", "/etc/nothing", Scope())
    with pytest.raises(NotFoundInPointError, match="without a catalogue"):
        catalogue_of(repository, repository.find("db1@r3"))
    assert [p.id for p in in_scope(repository, Scope(since=2.0, until=4.0))] == ["r3", "r2"]
    assert [p.id for p in in_scope(repository, Scope(newest=True))] == ["r5"]


def test_filters_are_noted_after_a_backup(place: Path, key: KeyFile, tmp_path: Path) -> None:
    Repository.create(place, key).close()
    with Repository.open(place, key, caches=tmp_path / "caches") as repository:
        made = commit(repository, "r1", TREE, 1.0)
        note_filters(repository, [made])
        pages = {page.names for page in catalogue_of(repository, made).pages}
        filters = open_filters(repository)
        assert all(map(filters.knows, pages))
        assert all(filters.without([b"no such name"]).among(sorted(pages)))


def test_disks_without_files_have_a_catalogue_that_says_so() -> None:
    made = catalogue_now([("disk", MemoryDisk(bytes(1 << 20)))])
    assert made.entries == 0
    assert all(volume.fault for volume in made.volumes)
