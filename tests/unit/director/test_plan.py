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
        (vm("a", "ds1", snapshot=True), "VMware snapshot"),
        (dataclasses.replace(vm("a", "ds1", snapshot=True), linked_clone=True), "full clone"),
        (
            dataclasses.replace(vm("a", "ds1", snapshot=True), consolidation_needed=True),
            "consolidate",
        ),
        (vm("a", "ds1", rdm=True), "raw device mapping"),
        (vm("a"), "no disk"),
        (vm("a", "wide"), "never snapshot together"),
    ],
)
def test_what_cannot_be_protected_is_refused_with_the_reason(
    machine: VirtualMachine, says: str
) -> None:
    with pytest.raises(UnprotectableVmError, match=says):
        plan(inventory(machine), "a")


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
