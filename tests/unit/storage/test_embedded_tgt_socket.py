"""Reading what tgtd prints."""

from hypothesis import given
from hypothesis import strategies as st

from atoll.storage.targets.tgt.tgt_socket import Session, parse_targets, shown_size

SHOWN = """Target 12: iqn.2026-11.org.atoll:p:g:a
    System information:
        Driver: iscsi
        State: ready
    I_T nexus information:
        I_T nexus: 7
            Initiator: iqn.1998-01.com.vmware:esx1 alias: none
            Connection: 0
                IP Address: 127.0.0.1
        I_T nexus: 9
            Initiator: iqn.1998-01.com.vmware:esx2 alias: esx
            Connection: 3
                IP Address: 127.0.0.1
    LUN information:
        LUN: 0
            Type: controller
            Size: 0 MB, Block size: 1
            Online: Yes
            Backing store path: None
        LUN: 1
            Type: disk
            SCSI ID: naa.6001405000
            Size: 67 MB, Block size: 512
            Online: No
            Backing store path: /pool/groups/g/a.img
            Backing store flags:
    Account information:
    ACL information:
        iqn.1998-01.com.vmware:esx1
        iqn.1998-01.com.vmware:esx2
Target 13: iqn.2026-11.org.atoll:p:g:b
    System information:
        Driver: iscsi
        State: offline
    I_T nexus information:
    LUN information:
        LUN: 0
            Type: controller
            Online: Yes
            Backing store path: None
    Account information:
    ACL information:
"""


def test_reads_targets_sessions_and_access() -> None:
    first, second = parse_targets(SHOWN)
    assert (first.id, first.name, first.ready) == (12, "iqn.2026-11.org.atoll:p:g:a", True)
    assert first.sessions == (
        Session(7, "iqn.1998-01.com.vmware:esx1", (0,)),
        Session(9, "iqn.1998-01.com.vmware:esx2", (3,)),
    )
    assert (first.path, first.size, first.online) == ("/pool/groups/g/a.img", "67 MB", False)
    assert first.initiators == ("iqn.1998-01.com.vmware:esx1", "iqn.1998-01.com.vmware:esx2")
    assert (second.ready, second.path, second.initiators) == (False, "", ())


def test_nothing_shown_is_no_target() -> None:
    assert parse_targets("") == []


@given(st.integers(1, 1 << 24))
def test_a_mebibyte_more_always_shows(mebibytes: int) -> None:
    assert shown_size(mebibytes << 20) != shown_size((mebibytes + 1) << 20)
