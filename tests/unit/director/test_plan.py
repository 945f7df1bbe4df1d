"""The plan: which VMs may be backed up together, and what is said when one may not."""

import dataclasses

import pytest

from atoll.director.plan import make_plan
from atoll.model.consistency import Consistency
from atoll.model.errors import UnknownVmError, UnprotectableVmError
from atoll.model.inventory import Datastore, Host, Inventory, VirtualDisk, VirtualMachine
from atoll.model.storage import Lun, LunGroup

NAA = "naa.6001405{:025x}"


def lun(name: str, group: str, number: int) -> Lun:
    return Lun(name, group, 1 << 30, NAA.format(number), name)


GROUPS = (
    LunGroup("prod", (lun("lun1", "prod", 1), lun("lun2", "prod", 2))),
    LunGroup("test", (lun("lun1", "test", 3),)),
)
DATASTORES = (
    Datastore("ds-1", "ds1", "VMFS", (NAA.format(1),), True, "uuid-1"),
    Datastore("ds-2", "ds2", "VMFS", (NAA.format(2),), True, "uuid-2"),
    Datastore("ds-3", "dst", "VMFS", (NAA.format(3),), True, "uuid-3"),
    Datastore("ds-4", "local1", "VMFS", ("mpx.vmhba0",), False, "uuid-4"),
    Datastore("ds-5", "foreign", "VMFS", (NAA.format(9),), True, "uuid-5"),
    Datastore("ds-6", "wide", "VMFS", (NAA.format(2), NAA.format(3)), True, "uuid-6"),
)


def vm(name: str, *datastores: str, snapshot: bool = False, rdm: bool = False) -> VirtualMachine:
    disks = tuple(
        VirtualDisk(
            2000 + i, f"Hard disk {i + 1}", ds, f"{name}/{i}.vmdk", 1 << 30, "persistent", rdm
        )
        for i, ds in enumerate(datastores)
    )
    return VirtualMachine(
        f"vm-{name}", f"uuid-of-{name}", name, "esx1", True, False, "debian", disks, snapshot, ""
    )


def with_disk(datastore: str, name: str = "a", **changes) -> VirtualMachine:
    """A VM with one disk that is changed so."""
    machine = vm(name, datastore)
    return dataclasses.replace(machine, disks=(dataclasses.replace(machine.disks[0], **changes),))


def inventory(*vms: VirtualMachine) -> Inventory:
    return Inventory((Host("host-1", "esx1", None),), DATASTORES, vms)


def plan(found: Inventory, *names: str):
    return make_plan("run1", names, found, GROUPS, {"uuid-of-db1"})


def test_disks_are_followed_to_luns_of_one_group() -> None:
    made = plan(inventory(vm("db1", "ds1", "ds2"), vm("app1", "ds2")), "db1", "app1")
    assert made.groups == ("prod",)
    assert made.luns("prod") == ("lun1", "lun2")
    assert [(v.vm.name, v.has_agent) for v in made.vms] == [("db1", True), ("app1", False)]
    assert made.vms[0].disks[1].vmfs_uuid == "uuid-2"


def test_vms_on_the_group_but_not_in_the_job_are_named() -> None:
    made = plan(inventory(vm("db1", "ds1"), vm("other", "ds2"), vm("far", "dst")), "db1")
    assert [each.name for each in made.bystanders] == ["other"]


def test_a_name_given_twice_is_planned_once() -> None:
    assert len(plan(inventory(vm("db1", "ds1")), "db1", "db1").vms) == 1


def test_unknown_vm_suggests_the_near_one() -> None:
    with pytest.raises(UnknownVmError, match="the nearest is db1"):
        plan(inventory(vm("db1", "ds1")), "bd1")


def test_two_vms_of_one_name_must_be_told_apart_by_uuid() -> None:
    twin = vm("db1", "ds1")
    other = VirtualMachine(
        "vm-x", "uuid-x", "db1", "esx1", True, False, "debian", twin.disks, False, ""
    )
    with pytest.raises(UnknownVmError, match="uuid-x"):
        plan(inventory(twin, other), "db1")
    assert plan(inventory(twin, other), "uuid-x").vms[0].vm.moref == "vm-x"


@pytest.mark.parametrize(
    ("machine", "says"),
    [
        (vm("a", "local1"), "local datastore local1"),
        (vm("a", "foreign"), "no configured storage system"),
        (dataclasses.replace(vm("a", "ds1", snapshot=True), linked_clone=True), "full clone"),
        (with_disk("ds1", below=("[ds1] b/b.vmdk",)), "full clone"),
        (with_disk("ds1", below=("[ds2] a/0.vmdk",)), "full clone"),
        (with_disk("ds1", below=("[ds1] a/x.vmdk",) * 33), "33 deltas .* consolidate"),
        (vm("a", "ds1", rdm=True), "no host names .*vCenter does not say which"),
        (with_disk("ds1", rdm=True, lun_uuid="02aa"), r"no host names \(02aa\); rescan"),
        (with_disk("ds1", rdm=True, lun=NAA.format(9)), "LUN naa.* no configured storage system"),
        (
            with_disk("ds1", rdm=True, lun=NAA.format(3), below=("[ds1] a/rdm.vmdk",)),
            "LUN is in group test while the snapshot lies in prod",
        ),
        (vm("a"), "no disk"),
        (vm("a", "wide"), "never snapshot together"),
    ],
)
def test_what_cannot_be_protected_is_refused_with_the_reason(
    machine: VirtualMachine, says: str
) -> None:
    with pytest.raises(UnprotectableVmError, match=says):
        plan(inventory(machine), "a")


def test_a_vm_with_snapshots_is_planned_as_it_runs_now() -> None:
    below = tuple(f"[ds1] a/0-{n:06d}.vmdk" for n in range(31, -1, -1))
    machine = dataclasses.replace(with_disk("ds1", below=below), has_snapshot=True)
    (disk,) = plan(inventory(machine), "a").vms[0].disks
    assert (disk.disk.path, disk.luns, disk.raw_lun) == ("a/0.vmdk", ("lun1",), "")
    waiting = dataclasses.replace(machine, consolidation_needed=True)
    assert plan(inventory(waiting), "a").vms[0].vm is waiting


def test_a_raw_mapping_lies_on_its_own_lun_wherever_its_mapping_is() -> None:
    raw = with_disk("local1", rdm=True, rdm_mode="physicalMode", lun=NAA.format(3))
    made = plan(inventory(raw, vm("b", "ds1")), "a", "b")
    (disk,) = made.vms[0].disks
    assert (disk.group, disk.vmfs_uuid, disk.luns, disk.raw_lun) == ("test", "", (), "lun1")
    assert (made.luns("test"), made.raw_luns("test")) == ((), ("lun1",))
    assert (made.luns("prod"), made.raw_luns("prod")) == (("lun1",), ())


def test_a_raw_mapping_with_a_snapshot_lies_on_the_volume_and_on_its_lun() -> None:
    below = ("[ds1] a/rdm.vmdk",)
    raw = with_disk("ds1", rdm=True, rdm_mode="virtualMode", lun=NAA.format(2), below=below)
    made = plan(inventory(raw), "a")
    (disk,) = made.vms[0].disks
    assert (disk.vmfs_uuid, disk.luns, disk.raw_lun) == ("uuid-1", ("lun1",), "lun2")
    assert (made.luns("prod"), made.raw_luns("prod")) == (("lun1",), ("lun2",))


def test_what_is_said_of_others_counts_their_raw_luns_and_all_their_files() -> None:
    raw = with_disk("foreign", "raw", rdm=True, lun=NAA.format(2))
    stray = with_disk("ds2", "stray", rdm=True, lun=NAA.format(9), below=("[ds2] stray/0.vmdk",))
    clone = with_disk("ds1", "clone", below=("[foreign] base/base.vmdk",))
    said = {each.name: each for each in plan(inventory(vm("db1", "ds1"), raw, stray, clone), "db1")
            .bystanders}  # fmt: skip
    assert said["raw"].consistency is Consistency.CRASH
    assert said["stray"].consistency is said["clone"].consistency is Consistency.NONE


def test_a_disk_that_another_running_vm_has_too_is_marked() -> None:
    mine, theirs = (with_disk("ds1", n, rdm=True, lun=NAA.format(2)) for n in ("a", "b"))
    found = inventory(mine, theirs, vm("c", "ds1"))
    assert plan(found, "a").vms[0].disks[0].shared_with == ("b",)
    assert [v.disks[0].shared_with for v in plan(found, "a", "b").vms] == [("b",), ("a",)]
    off = dataclasses.replace(theirs, powered_on=False)
    assert plan(inventory(mine, off), "a").vms[0].disks[0].shared_with == ()


def test_disks_in_several_groups_are_all_planned() -> None:
    made = plan(inventory(vm("db1", "ds1", "dst"), vm("far", "dst"), vm("b", "ds2")), "db1")
    assert made.groups == ("prod", "test")
    assert (made.luns("prod"), made.luns("test")) == (("lun1",), ("lun1",))
    assert [each.name for each in made.bystanders] == ["b", "far"]
    assert {each.consistency for each in made.bystanders} == {Consistency.CRASH}


def test_what_a_snapshot_holds_of_a_vm_that_nobody_holds_is_not_overstated() -> None:
    off = dataclasses.replace(vm("off", "ds1", "dst"), powered_on=False)
    found = inventory(
        vm("db1", "ds1", "dst"), vm("part", "ds1", "local1"), vm("two", "ds2", "dst"), off
    )
    said = {each.name: (each.consistency, each.reason) for each in plan(found, "db1").bystanders}
    assert said["part"][0] is said["two"][0] is Consistency.NONE
    assert "elsewhere" in said["part"][1]
    assert "several LUN groups" in said["two"][1]
    assert said["off"][0] is Consistency.CRASH
