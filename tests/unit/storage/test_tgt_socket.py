"""Reading what tgtd prints, and telling what it refused."""

import socket
import struct
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.storage.targets.tgt.tgt_socket import (
    Mode,
    Operation,
    Refusal,
    Session,
    TgtRefusedError,
    TgtSocket,
    parse_targets,
    shown_size,
)

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
            Readonly: No
            Backing store path: None
        LUN: 1
            Type: disk
            SCSI ID: naa.6001405000
            Size: 67 MB, Block size: 512
            Online: No
            Readonly: Yes
            Backing store path: /pool/groups/g/a.img
            Backing store flags:
    Account information:
        (nobody)
        one, two
        three (outgoing)
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
    assert first.accounts == ("(nobody)", "one, two", "three (outgoing)")
    assert (first.read_only, second.read_only) == (True, False)
    assert (second.ready, second.path, second.initiators) == (False, "", ())
    assert second.accounts == ()


def test_nothing_shown_is_no_target() -> None:
    assert parse_targets("") == []


@given(st.integers(1, 1 << 24))
def test_a_mebibyte_more_always_shows(mebibytes: int) -> None:
    assert shown_size(mebibytes << 20) != shown_size((mebibytes + 1) << 20)


def test_a_refusal_tells_what_was_asked_and_no_password(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "t.0"))
        listener.listen()

        def refuse() -> None:
            caller, _ = listener.accept()
            with caller:
                caller.recv(4096)
                caller.sendall(struct.pack("=II", Refusal.NO_USER, 8))

        answering = threading.Thread(target=refuse)
        answering.start()
        with pytest.raises(TgtRefusedError) as refused:
            TgtSocket(tmp_path / "t").call(
                Operation.NEW, Mode.ACCOUNT, parameters="user=esx1,password=very-secret-1"
            )
        answering.join()
    assert refused.value.reason == Refusal.NO_USER
    assert "new account user=esx1" in str(refused.value)
    assert "very-secret-1" not in str(refused.value)
