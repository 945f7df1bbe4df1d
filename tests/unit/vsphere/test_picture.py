"""Updates of the property collector taken into rows."""

from pyVmomi import VmomiSupport, vim, vmodl

from atoll.vsphere.collector import Row
from atoll.vsphere.facts import VM
from atoll.vsphere.picture import Picture

Q = vmodl.query.PropertyCollector
REF = vim.VirtualMachine("vm-1")


def disk(key=2000, file="[ds] a/a.vmdk"):
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=file, diskMode="persistent")
    return vim.vm.device.VirtualDisk(key=key, capacityInKB=4, backing=backing)


def devices(*each):
    """A list as it comes off the wire: it says what it is a list of."""
    return VmomiSupport.CreateArrayType(vim.vm.device.VirtualDevice)(each)


def update(kind, *changes, missing=()):
    return Q.ObjectUpdate(
        kind=kind,
        obj=REF,
        changeSet=[Q.Change(name=name, op=op, val=value) for name, op, value in changes],
        missingSet=[Q.MissingProperty(path=path, fault=fault) for path, fault in missing],
    )


def entered(*changes, missing=()):
    picture = Picture()
    base = (
        ("name", "assign", "a"),
        ("runtime.host", "assign", vim.HostSystem("host-1")),
        ("config.hardware.device", "assign", devices(disk())),
    )
    picture.apply([update("enter", *base, *changes, missing=missing)])
    picture.touched()
    return picture


def test_an_object_enters_changes_and_leaves():
    picture = entered()
    assert (picture.rows["vm-1"].name, picture.rows["vm-1"].host) == ("a", "host-1")

    picture.apply([update("modify", ("runtime.host", "assign", vim.HostSystem("host-2")))])
    assert picture.rows["vm-1"].host == "host-2"
    assert picture.rows["vm-1"].name == "a"
    assert picture.touched() == {"vm-1"}
    assert picture.touched() == frozenset()

    picture.apply([update("leave")])
    assert picture.rows == {}
    assert picture.touched() == {"vm-1"}


def test_devices_told_anew_replace_those_of_before():
    picture = entered()

    picture.apply(
        [update("modify", ("config.hardware.device", "assign", devices(disk(2001), disk(2002))))]
    )

    assert [each.key for each in picture.rows["vm-1"].disks] == [2001, 2002]


def test_what_is_removed_or_told_without_a_value_is_unset():
    for op in ("remove", "indirectRemove", "assign"):
        picture = entered()
        picture.apply([update("modify", ("runtime.host", op, None))])
        assert picture.rows["vm-1"].host == ""
        assert not picture.unclear()


def test_a_part_of_a_path_or_more_than_one_is_read_anew():
    for name, op, value in (
        ("config.hardware.device[4000]", "add", disk(4000)),
        ("config.hardware.device[2000].backing.fileName", "assign", "[ds] a/a-000001.vmdk"),
        ("config.hardware.device[2000]", "remove", None),
        ("config.hardware.device", "add", disk(4000)),
        ("config", "assign", vim.vm.ConfigInfo()),
    ):
        picture = entered()
        picture.apply([update("modify", (name, op, value))])
        assert picture.unclear() == {VM: ["vm-1"]}

        values = {"name": "a", "config.hardware.device": devices(disk(4000))}
        picture.replace(VM, [Row("vm-1", vim.VirtualMachine, values)])
        picture.touched()
        assert [each.key for each in picture.rows["vm-1"].disks] == [4000]
        assert not picture.unclear()


def test_an_unclear_object_that_left_is_not_asked_for():
    picture = entered()
    picture.apply([update("modify", ("config", "assign", None)), update("leave")])

    assert not picture.unclear()


def test_a_change_of_an_object_that_never_entered_is_unclear():
    picture = Picture()
    picture.apply([update("modify", ("name", "assign", "b"))])

    assert picture.unclear() == {VM: ["vm-1"]}


def test_a_refused_path_is_remembered_until_it_is_told():
    refused = vim.fault.NoPermission(privilegeId="System.Read")
    picture = entered(missing=[("snapshot", refused)])
    assert picture.refused == {"vm-1"}

    picture.apply([update("modify", ("name", "assign", "b"))])
    assert picture.refused == {"vm-1"}, "another path says nothing of it"
    picture.apply([update("modify", ("snapshot", "assign", None))])
    assert picture.refused == frozenset()

    picture.apply([update("modify", missing=[("snapshot", refused)])])
    assert picture.refused == {"vm-1"}
    picture.apply([update("leave")])
    assert picture.refused == frozenset()


def test_a_path_that_cannot_be_had_for_another_reason_is_unset():
    picture = entered()
    fault = vmodl.fault.HostNotConnected()

    picture.apply([update("modify", missing=[("config.hardware.device", fault)])])

    assert picture.rows["vm-1"].disks == ()
    assert picture.refused == frozenset()
