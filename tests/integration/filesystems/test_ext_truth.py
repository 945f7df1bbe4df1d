"""Every name, attribute and byte of real ext file systems, compared with the kernel's own view."""

import hashlib
import os
from pathlib import Path

import pytest
from linux_trees import assert_as_the_kernel_sees

from atoll.blocks.readers import FileReader
from atoll.filesystems.interface import EntryKind
from atoll.filesystems.session import open_filesystem
from atoll.model.errors import NotFoundInPointError, UnsupportedFormatError

pytestmark = pytest.mark.needs_root


def test_everything_is_as_the_kernel_sees_it(guest) -> None:
    with open_filesystem(FileReader(guest.image)) as session:
        assert session.journal == "clean"
        assert session.kind == guest.form[:4]
        assert session.label == f"L-{guest.form}"[:16]
        assert len(guest.truth) > 3500
        assert_as_the_kernel_sees(session, guest.truth)


def test_a_dirty_journal_is_replayed_in_memory_alone(dirty) -> None:
    before = hashlib.sha256(dirty.image.read_bytes()).digest()
    with open_filesystem(FileReader(dirty.image)) as session:
        assert session.journal == "replayed"
        assert b"/base/renamed" in dirty.truth
        assert_as_the_kernel_sees(session, dirty.truth)
        synced = b"".join(data.content for data in session.read("/new/synced"))
        assert synced == b"synced content\n"
    assert hashlib.sha256(dirty.image.read_bytes()).digest() == before


def test_questions_about_single_paths(guest) -> None:
    with open_filesystem(FileReader(guest.image)) as session:
        assert session.stat("/").kind is EntryKind.DIRECTORY
        link = session.stat("/corner/sym-escape")
        assert (link.kind, link.target) == (EntryKind.SYMLINK, "../../../../etc/passwd")
        names = {os.fsencode(entry.name) for entry in session.list("/corner")}
        corner = b"/corner/"
        assert names == {
            p[len(corner) :]
            for p in guest.truth
            if p.startswith(corner) and b"/" not in p[len(corner) :]
        }
        below = {os.fsencode(entry.path) for entry in session.list("/corner", recursive=True)}
        assert below == {path for path in guest.truth if path.startswith(corner)}
        for path in ("/corner/acl", "/corner/sub", "/corner/xattr"):
            assert session.xattrs(path) == guest.truth[os.fsencode(path)].xattrs
        with pytest.raises(NotFoundInPointError, match="no /corner/nothing"):
            session.stat("/corner/nothing")
        with pytest.raises(NotFoundInPointError, match="not a directory"):
            session.stat("/corner/hard1/below")
        with pytest.raises(NotFoundInPointError, match="directory"):
            list(session.read("/corner"))


def test_holes_are_left_out(guest) -> None:
    with open_filesystem(FileReader(guest.image)) as session:
        assert sum(len(data.content) for data in session.read("/corner/sparse")) <= 3 * 20480
        assert list(session.read("/corner/hole-only")) == []


def test_an_abandoned_listing_leaves_the_session_usable(guest) -> None:
    with open_filesystem(FileReader(guest.image)) as session:
        listing = session.list("/", recursive=True)
        next(listing)
        with pytest.raises(RuntimeError, match="one iterator"):
            session.stat("/")
        listing.close()
        assert session.stat("/corner/hard1").size == 4


def test_what_is_not_ext_is_refused_in_a_sentence(tmp_path: Path) -> None:
    image = tmp_path / "zeros"
    image.write_bytes(bytes(1 << 20))
    with pytest.raises(UnsupportedFormatError, match="restore the whole disk"):
        open_filesystem(FileReader(image))
