"""What is told of two rows, and how changes are kept."""

import threading
from dataclasses import replace

import pytest

from atoll.model.changes import ChangeKind
from atoll.vsphere import changelog
from atoll.vsphere.changelog import ChangeLog
from atoll.vsphere.differences import Difference, differences
from atoll.vsphere.facts import (
    DATASTORE,
    HOST,
    VM,
    DiskFacts,
    LunFacts,
    SnapshotFacts,
    VolumeFacts,
)

NAMES = {"host-1": "esx1", "host-2": "esx2", "datastore-1": "ds1", "datastore-2": "ds2"}
VM_ROW = replace(
    VM.read(
        "vm-1", {"name": "db1", "config.instanceUuid": "u1", "runtime.powerState": "poweredOn"}
    ),
    host="host-1",
    connection="connected",
    datastores=("datastore-1",),
    disks=(DiskFacts(2000, "Hard disk 1", "[ds1] a/a.vmdk", "datastore-1", 1, "persistent", None),),
)
HOST_ROW = replace(
    HOST.read("host-1", {"name": "esx1"}), luns=LunFacts(frozenset({"naa.1"}), frozenset())
)
STORE_ROW = replace(
    DATASTORE.read("datastore-1", {"name": "ds1"}), volume=VolumeFacts("v", ("naa.1",), False)
)
DISK = VM_ROW.disks[0]


def told(old, new):
    found = differences([(old, new)], NAMES, NAMES)
    return [(each.kind, each.before, each.after) for each in found]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"name": "db2"}, (ChangeKind.VM_RENAMED, "db1", "db2")),
        ({"host": "host-2"}, (ChangeKind.VM_MOVED_HOST, "esx1", "esx2")),
        ({"datastores": ("datastore-2",)}, (ChangeKind.VM_MOVED_DATASTORE, "ds1", "ds2")),
        ({"power": "suspended"}, (ChangeKind.VM_POWER, "poweredOn", "suspended")),
        ({"connection": "orphaned"}, (ChangeKind.VM_CONTACT, "connected", "orphaned")),
        ({"template": True}, (ChangeKind.VM_TEMPLATE, "vm", "template")),
        ({"disks": ()}, (ChangeKind.VM_DISKS, "[ds1] a/a.vmdk", "")),
        (
            {"snapshots": SnapshotFacts({"s-1": "before patches"}, 1)},
            (ChangeKind.VM_SNAPSHOT_APPEARED, "", "before patches"),
        ),
    ],
)
def test_each_change_of_a_vm_is_told_once_both_ways(change, expected):
    changed = replace(VM_ROW, **change)

    assert told(VM_ROW, changed) == [expected]
    kind, before, after = expected
    back = ChangeKind.VM_SNAPSHOT_GONE if kind is ChangeKind.VM_SNAPSHOT_APPEARED else kind
    assert told(changed, VM_ROW) == [(back, after, before)]


def test_paths_that_follow_a_datastores_new_name_are_no_other_disks():
    renamed = replace(VM_ROW, disks=(replace(DISK, file="[gold] a/a.vmdk"),))

    assert told(VM_ROW, renamed) == []


def test_disks_that_grow_or_change_their_mode_are_told():
    for change in ({"size_bytes": 2}, {"mode": "independent_persistent"}):
        changed = replace(VM_ROW, disks=(replace(DISK, **change),))
        assert [kind for kind, _, _ in told(VM_ROW, changed)] == [ChangeKind.VM_DISKS]


def test_what_comes_and_goes_is_told_with_where_it_was():
    assert told(None, VM_ROW) == [(ChangeKind.VM_APPEARED, "", "esx1")]
    assert told(VM_ROW, None) == [(ChangeKind.VM_GONE, "esx1", "")]
    assert told(None, HOST_ROW) == [(ChangeKind.HOST_APPEARED, "", "")]
    assert told(HOST_ROW, None) == [(ChangeKind.HOST_GONE, "", "")]
    assert told(None, STORE_ROW) == [(ChangeKind.DATASTORE_APPEARED, "", "naa.1")]
    assert told(STORE_ROW, None) == [(ChangeKind.DATASTORE_GONE, "naa.1", "")]
    assert told(None, None) == []


def test_hosts_and_datastores_change():
    luns = LunFacts(frozenset({"naa.2"}), frozenset())
    assert told(HOST_ROW, replace(HOST_ROW, name="esx9", iqn="iqn.x", luns=luns)) == [
        (ChangeKind.HOST_RENAMED, "esx1", "esx9"),
        (ChangeKind.HOST_INITIATOR, "", "iqn.x"),
        (ChangeKind.LUN_GONE, "naa.1", ""),
        (ChangeKind.LUN_APPEARED, "", "naa.2"),
    ]
    grown = VolumeFacts("v", ("naa.1", "naa.2"), False)
    assert told(STORE_ROW, replace(STORE_ROW, name="gold", volume=grown)) == [
        (ChangeKind.DATASTORE_RENAMED, "ds1", "gold"),
        (ChangeKind.DATASTORE_LUNS, "naa.1", "naa.1, naa.2"),
    ]


def test_hosts_come_before_datastores_and_those_before_vms():
    found = differences([(None, VM_ROW), (None, STORE_ROW), (None, HOST_ROW)], {}, NAMES)

    assert [each.kind for each in found] == [
        ChangeKind.HOST_APPEARED,
        ChangeKind.DATASTORE_APPEARED,
        ChangeKind.VM_APPEARED,
    ]


def some(count):
    return [Difference(ChangeKind.VM_POWER, f"vm{number}", "vm-1") for number in range(count)]


def test_changes_are_numbered_without_a_gap_and_told_from_any_number_on():
    log = ChangeLog()
    log.add(some(3))
    log.add(some(1))

    assert [change.number for change in log.wait(0, 0).changes] == [1, 2, 3, 4]
    assert [change.number for change in log.wait(2, 0).changes] == [3, 4]
    assert log.wait(4, 0).changes == ()
    assert (log.latest, log.wait(2, 0).latest, log.wait(9, 0).latest) == (4, 4, 9)


def test_who_comes_too_late_is_told_so(monkeypatch):
    monkeypatch.setattr(changelog, "_KEPT", 2)
    log = ChangeLog()
    log.add(some(4))

    assert log.wait(0, 0).missed
    assert log.wait(1, 0).missed
    assert not log.wait(2, 0).missed
    assert [change.number for change in log.wait(2, 0).changes] == [3, 4]


def test_waiting_ends_with_a_change_or_with_the_log():
    for end in (lambda log: log.add(some(1)), lambda log: log.close()):
        log = ChangeLog()
        threading.Timer(0.05, end, args=(log,)).start()
        heard = log.wait(0, 3600)
        assert len(heard.changes) == log.latest
