"""Descriptors of virtual disks: VMFS disks and their deltas are read, all others refused in a sentence."""

import pytest

from atoll.blocks.vmdk import ExtentKind, FileExtent, Parent, parse_descriptor
from atoll.model.errors import UnsupportedFormatError

_HEAD = '# Disk DescriptorFile\nversion=1\nparentCID=ffffffff\ncreateType="vmfs"\n'
_DELTA = (
    "# Disk DescriptorFile\nversion=1\nCID=0000beef\nparentCID=0badcafe\n"
    'createType="seSparse"\nparentFileNameHint="db 1.vmdk"\n'
)
_GRAINS = 'RW 8 SESPARSE "d-000001-sesparse.vmdk"\n'


def test_flat_extents_come_in_order_with_their_offsets() -> None:
    text = (
        _HEAD
        + '\nRW 8 VMFS "db-flat.vmdk"\r\n'
        + 'RW 4 FLAT "db two-f001.vmdk" 16\n'
        + "RW 2 ZERO\n"
        + 'ddb.uuid = "60 00"\n'
    )
    found = parse_descriptor(text.encode(), "/db/db.vmdk")
    assert found.extents == (
        FileExtent("db-flat.vmdk", 4096, 0),
        FileExtent("db two-f001.vmdk", 2048, 8192),
        FileExtent("", 1024, 0, ExtentKind.ZERO),
    )
    assert (found.content_id, found.parent, found.size_bytes) == (None, None, 7168)


def test_a_delta_says_what_it_lies_on() -> None:
    found = parse_descriptor((_DELTA + _GRAINS).encode(), "/db/db-000001.vmdk")
    assert found.parent == Parent("db 1.vmdk", 0x0BADCAFE)
    assert found.content_id == 0xBEEF
    assert found.extents == (FileExtent("d-000001-sesparse.vmdk", 4096, 0, ExtentKind.SESPARSE),)
    redo = _DELTA + 'RW 8 VMFSSPARSE "d-000001-delta.vmdk"\n'
    assert parse_descriptor(redo.encode(), "/d").extents[0].kind is ExtentKind.COWD


def test_a_raw_mapping_is_told_as_such() -> None:
    (extent,) = parse_descriptor((_HEAD + 'RW 8 VMFSRDM "d-rdm.vmdk"').encode(), "/d").extents
    assert extent == FileExtent("d-rdm.vmdk", 4096, 0, ExtentKind.RAW)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (_HEAD + 'RW 8 SPARSE "d-s001.vmdk"', "hosted products"),
        (_HEAD + 'RW 8 VVOL "d.vmdk"', "of type VVOL"),
        (_HEAD + 'RW 8 VMFSRDM "d-rdm.vmdk"\n' * 2, "of several parts"),
        (_DELTA + 'RW 8 VMFS "d-flat.vmdk"', "no delta of a kind that Atoll knows"),
        (_DELTA.replace("db 1.vmdk", "") + _GRAINS, "does not say which disk"),
        (_DELTA + 'isNativeSnapshot="yes"\n' + _GRAINS, "native"),
        (_DELTA + "CID=0000bee0\n" + _GRAINS, "says CID twice"),
        (_DELTA.replace("0badcafe", "badcafes") + _GRAINS, "parentCID that cannot be read"),
        (_DELTA + 'RW 8 SESPARSE "d" 8', "begins within its file"),
        (_HEAD + 'RW 8 VMFS "/vmfs/volumes/other/d-flat.vmdk"', "another directory"),
        (_HEAD + 'RW 8 VMFS "../d-flat.vmdk"', "another directory"),
        (_HEAD + 'RW 0 VMFS "d-flat.vmdk"', "0 sectors"),
        (_HEAD + f'RW {1 << 62} VMFS "d-flat.vmdk"', "cannot be right"),
        (_HEAD + "RW eight VMFS", "cannot be read"),
        (_HEAD, "0 extents"),
        (_HEAD + 'RW 8 VMFS "d"\n' * 300, "300 extents"),
        ("\x00\x01KDMV", "not a VMDK descriptor"),
    ],
)
def test_anything_else_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(UnsupportedFormatError, match=reason) as caught:
        parse_descriptor(text.encode(), "/db/db.vmdk")
    assert str(caught.value).startswith("/db/db.vmdk")
