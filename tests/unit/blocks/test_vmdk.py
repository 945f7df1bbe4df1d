"""Descriptors of virtual disks: flat ones are read, all others refused in a sentence."""

import pytest

from atoll.blocks.vmdk import FlatExtent, parse_descriptor
from atoll.model.errors import UnsupportedFormatError

_HEAD = '# Disk DescriptorFile\nversion=1\nparentCID=ffffffff\ncreateType="vmfs"\n'


def test_flat_extents_come_in_order_with_their_offsets() -> None:
    text = (
        _HEAD
        + '\nRW 8 VMFS "db-flat.vmdk"\r\n'
        + 'RW 4 FLAT "db two-f001.vmdk" 16\n'
        + "RW 2 ZERO\n"
        + 'ddb.uuid = "60 00"\n'
    )
    assert parse_descriptor(text.encode(), "/db/db.vmdk") == [
        FlatExtent("db-flat.vmdk", 4096, 0),
        FlatExtent("db two-f001.vmdk", 2048, 8192),
        FlatExtent("", 1024, 0),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (_HEAD + 'RW 8 VMFSSPARSE "d-000001-delta.vmdk"', "redo log"),
        (_HEAD + 'RW 8 SESPARSE "d-000001-sesparse.vmdk"', "redo log"),
        (_HEAD + 'RW 8 VMFSRDM "d-rdm.vmdk"', "raw device mapping"),
        (_HEAD + 'RW 8 VVOL "d.vmdk"', "of type VVOL"),
        (_HEAD.replace("ffffffff", "0badcafe") + 'RW 8 VMFS "d-flat.vmdk"', "a snapshot on top"),
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
