"""Searches against brute force, and filters that never hide what is there."""

import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.catalogue.catalogue import Catalogue
from atoll.catalogue.filters import PageFilters
from atoll.catalogue.patterns import Bounds, Pattern
from atoll.catalogue.search import Search, Searched
from atoll.filesystems.interface import EntryKind
from catalogue_parts import Node, Tree, catalogue

SECRET = bytes(range(32))
ANYTHING = Bounds()
WORDS = ["etc", "Passwd", "passwd", "conf.d", "a[b]", "x*y", "été", "re port", "\udcff\n", "pass"]


def names(
    tree: Tree,
    text: str,
    *,
    bounds: Bounds = ANYTHING,
    filters: PageFilters | None = None,
    case: bool = False,
) -> set[str]:
    search = Search(Pattern(text, case), bounds, filters)
    found = search.run([_searched("vm", "r1", 1.0, lambda: catalogue((tree, ("/",))))])
    return {each.entry.path for each in found}


def _searched(vm: str, run: str, at: float, opened: Callable[[], Catalogue]) -> Searched:
    return Searched(vm, f"uuid-{vm}", run, at, opened)


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Node]:
    tree: dict[str, Node] = {}
    directories = [""]
    for _ in range(draw(st.integers(1, 25))):
        name = "".join(draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3)))
        path = f"{draw(st.sampled_from(directories))}/{name}"
        if path not in tree:
            directory = draw(st.booleans())
            tree[path] = Node(EntryKind.DIRECTORY if directory else EntryKind.FILE)
            if directory:
                directories.append(path)
    return tree


def encoded(tree: dict[str, Node]) -> Tree:
    return {path.encode("utf-8", "surrogateescape"): node for path, node in tree.items()}


def fold(text: str) -> str:
    return "".join(c.lower() if c.isascii() else c for c in text)


@given(trees(), st.sampled_from([*WORDS, "s", "ss", "ssw", "SSW", "t/p", "/pass", "etc/Pa", "zzz"]))
@settings(deadline=None, max_examples=80)
def test_fragments_are_found_as_brute_force_finds_them(tree: dict[str, Node], text: str) -> None:
    wild = any(c in text for c in "*?[")
    if not wild:
        directory, slash, fragment = fold(text).rpartition("/")
        expected = {
            path
            for path in tree
            if (
                fold(path.rpartition("/")[0]).endswith(directory)
                and fold(path.rpartition("/")[2]).startswith(fragment)
                if slash
                else fragment in fold(path.rpartition("/")[2])
            )
        }
        assert names(encoded(tree), text) == expected
        with_filters = PageFilters(None, SECRET)
        assert names(encoded(tree), text, filters=with_filters) == expected
        assert names(encoded(tree), text, filters=with_filters) == expected


GLOBS = {
    "pass*": r"/(?:.*/)?pass[^/]*",
    "*.d": r"/(?:.*/)?[^/]*\.d",
    "[ep]tc": r"/(?:.*/)?[ep]tc",
    "[!e]tc*": r"/(?:.*/)?[^e/]tc[^/]*",
    "?t?": r"/(?:.*/)?[^/]t[^/]",
    "/etc/*": r"/etc/[^/]*",
    "/**/pass*": r"/(?:.*/)pass[^/]*",
    "etc/*": r"/(?:.*/)?etc/[^/]*",
    "/*": r"/[^/]*",
}


@given(trees(), st.sampled_from(sorted(GLOBS)))
@settings(deadline=None, max_examples=80)
def test_wildcards_are_found_as_brute_force_finds_them(tree: dict[str, Node], text: str) -> None:
    wanted = re.compile(GLOBS[text], re.DOTALL | re.IGNORECASE | re.ASCII)
    expected = {path for path in tree if wanted.fullmatch(path)}
    assert names(encoded(tree), text) == expected


def test_case_and_bounds() -> None:
    tree = {
        b"/Report": Node(size=10, mtime=100),
        b"/report": Node(size=2000, mtime=200),
        b"/sub": Node(EntryKind.DIRECTORY),
        b"/sub/report.d": Node(EntryKind.DIRECTORY, mtime=300),
    }
    assert names(tree, "Report", case=True) == {"/Report"}
    assert names(tree, "report") == {"/Report", "/report", "/sub/report.d"}
    for bounds, expected in (
        (Bounds(larger=10), {"/report"}),
        (Bounds(smaller=2000), {"/Report"}),
        (Bounds(newer=200), {"/report", "/sub/report.d"}),
        (Bounds(older=200), {"/Report"}),
        (Bounds(kind=EntryKind.DIRECTORY), {"/sub/report.d"}),
        (Bounds(below="/sub"), {"/sub/report.d"}),
        (Bounds(below="/su"), set()),
    ):
        assert names(tree, "report", bounds=bounds) == expected


def test_each_file_of_a_vm_is_shown_once_from_its_newest_point() -> None:
    old = catalogue(({b"/kept": Node(size=1), b"/kept-gone": Node(size=9)}, ("/",)))
    new = catalogue(({b"/kept": Node(size=2)}, ("/",)))
    search = Search(Pattern("kept"), Bounds(), None)
    points = [
        _searched("a", "r2", 2.0, lambda: new),
        _searched("b", "r2", 2.0, lambda: new),
        _searched("a", "r1", 1.0, lambda: old),
    ]
    found = [(each.vm, each.run, each.entry.path, each.entry.size) for each in search.run(points)]
    assert found == [
        ("a", "r2", "/kept", 2),
        ("b", "r2", "/kept", 2),
        ("a", "r1", "/kept-gone", 9),
    ]
    assert search.pages_read == 2  # what both VMs have was looked into once


def test_a_file_that_fits_only_in_an_older_point_is_shown_from_there() -> None:
    old = catalogue(({b"/log": Node(size=500)}, ("/",)))
    new = catalogue(({b"/log": Node(size=2)}, ("/",)))
    search = Search(Pattern("log"), Bounds(larger=100), None)
    points = [_searched("a", "r2", 2.0, lambda: new), _searched("a", "r1", 1.0, lambda: old)]
    assert [(each.run, each.entry.size) for each in search.run(points)] == [("r1", 500)]


def texts(count: int, seed: int) -> dict[bytes, bytes]:
    rnd = random.Random(seed)
    return {
        rnd.randbytes(32): b"".join(rnd.randbytes(6).hex().encode() + b"\0" for _ in range(30))
        for _ in range(count)
    }


def test_filters_hide_no_page_that_has_the_fragment(tmp_path: Path) -> None:
    pages = texts(50, 1)
    for place in (None, tmp_path / "files"):
        filters = PageFilters(place, SECRET)
        for name, text in pages.items():
            filters.add(name, text)
        for _ in range(2):
            for text in pages.values():
                fragment = text[13 * 7 : 13 * 7 + 9]
                absent = filters.without([fragment])
                assert not any(name in absent for name, has in pages.items() if fragment in has)
                assert sum(name in absent for name in pages) > 40
            filters.save()
            if place is not None:
                filters = PageFilters(place, SECRET)
                assert all(map(filters.knows, pages))
    assert len(filters.without([b"ab"])) == 0


def test_small_files_of_filters_are_joined(tmp_path: Path) -> None:
    pages: dict[bytes, bytes] = {}
    for turn in range(20):
        filters = PageFilters(tmp_path / "f", SECRET)
        more = texts(3, turn)
        for name, text in more.items():
            filters.add(name, text)
        filters.save()
        pages |= more
    filters = PageFilters(tmp_path / "f", SECRET)
    assert all(map(filters.knows, pages))
    assert len(list((tmp_path / "f").iterdir())) < 10
    for text in pages.values():
        fragment = text[:8]
        absent = filters.without([fragment])
        assert not any(name in absent for name, has in pages.items() if fragment in has)
        assert len(absent)


def test_damaged_filters_hide_nothing(tmp_path: Path) -> None:
    pages = texts(16, 3)
    filters = PageFilters(tmp_path, SECRET)
    for name, text in pages.items():
        filters.add(name, text)
    filters.save()
    (file,) = tmp_path.glob("*.filter")
    data = bytearray(file.read_bytes())
    rnd = random.Random(5)
    # All rows zero, which would say that no page has anything; and then the names.
    data[-(1 << 15) * 10 :] = bytes((1 << 15) * 10)
    file.write_bytes(data)
    fragment = next(iter(pages.values()))[:8]
    assert len(PageFilters(tmp_path, SECRET).without([fragment])) == 0
    data[60 + rnd.randrange(100)] ^= 1
    file.write_bytes(data)
    assert not PageFilters(tmp_path, SECRET).knows(next(iter(pages)))
    assert not file.exists()


def test_filters_of_another_key_and_in_open_directories_are_not_used(tmp_path: Path) -> None:
    filters = PageFilters(tmp_path, SECRET)
    filters.add(b"n" * 32, b"name\0")
    filters.save()
    os.chmod(tmp_path, 0o777)
    assert not PageFilters(tmp_path, SECRET).knows(b"n" * 32)
    os.chmod(tmp_path, 0o700)
    assert PageFilters(tmp_path, SECRET).knows(b"n" * 32)
    assert not PageFilters(tmp_path, SECRET[::-1]).knows(b"n" * 32)


@pytest.mark.parametrize("text", ["", "*", "[", "a[", "[!", "//", "/"])
def test_odd_patterns_are_no_errors(text: str) -> None:
    names({b"/a[": Node(), b"/b": Node()}, text)
