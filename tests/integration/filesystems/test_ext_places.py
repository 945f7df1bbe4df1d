"""Where files lie: read from there they are what the kernel shows, journal and all."""

import hashlib

import pytest

from atoll.blocks.readers import FileReader
from atoll.filesystems.interface import EntryKind, Placed
from atoll.filesystems.rows import Row
from atoll.filesystems.session import FileSystemSession, open_filesystem

pytestmark = pytest.mark.needs_root


def tree(session: FileSystemSession) -> dict[bytes, Row]:
    """Every entry by its path, asked for by inode alone."""
    found: dict[bytes, Row] = {}
    todo = [(b"", session.node(session.stat("/").inode))]
    while todo:
        path, entry = todo.pop()
        found[path or b"/"] = entry
        if entry.kind is EntryKind.DIRECTORY:
            for child in list(session.children(entry.inode)):
                assert child.kind is not None, child.name
                todo.append((path + b"/" + child.name, child))
    return found


def digest(session: FileSystemSession, reader: FileReader, entry: Row) -> str:
    known = entry.places
    pieces = session.layout(entry.inode) if known is None else known
    hashed = hashlib.sha256()
    at = 0
    for piece in pieces:
        hashed.update(bytes(piece.offset - at))
        if isinstance(piece, Placed):
            hashed.update(reader.read(piece.at, piece.length))
            at = piece.offset + piece.length
        else:
            hashed.update(piece.content)
            at = piece.offset + len(piece.content)
    hashed.update(bytes(entry.size - at))
    return hashed.hexdigest()


def assert_content(guest) -> None:
    reader = FileReader(guest.image)
    with open_filesystem(reader) as session:
        found = tree(session)
        assert found.keys() == guest.truth.keys()
        for path, truth in guest.truth.items():
            if truth.digest is not None and truth.size < 1 << 30:
                assert digest(session, reader, found[path]) == truth.digest, path
            xattrs = found[path].xattrs
            known = dict(xattrs) if xattrs is not None else session.attributes(truth.inode)
            assert known == truth.xattrs, path


def test_files_are_where_their_layout_says(guest) -> None:
    assert_content(guest)


def test_changes_in_the_journal_alone_are_part_of_a_layout(dirty) -> None:
    assert_content(dirty)
