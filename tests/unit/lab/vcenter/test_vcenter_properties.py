"""The property collector's arithmetic on objects made for the purpose."""

import pytest
from pyVmomi import vim, vmodl

from atoll_lab.vcenter.objects.base import Managed, exposes
from atoll_lab.vcenter.properties import advance, select, value_at
from atoll_lab.vcenter.registry import Registry

VERSION = "vim.version.v8_0_3_0"
Q = vmodl.query.PropertyCollector


class Box(Managed):
    """A folder whose content is set by the test."""

    kind = vim.Folder

    def __init__(self, moid, content=()):
        super().__init__(None, moid)
        self.content = list(content)
        self.title = moid

    @exposes("name")
    def name(self):
        return self.title

    @exposes("childEntity")
    def child_entities(self):
        return [each.ref for each in self.content]


class Machine(Managed):
    """A VM of which only some is known."""

    kind = vim.VirtualMachine

    def __init__(self, moid):
        super().__init__(None, moid)
        self.host = "host-1"

    @exposes("runtime")
    def runtime(self):
        return vim.vm.RuntimeInfo(powerState="poweredOn", host=vim.HostSystem(self.host))

    @exposes("config")
    def config(self):
        return None

    @exposes("datastore")
    def datastore(self):
        return []


def registry_of(*objects):
    registry = Registry()
    for each in objects:
        registry.add(each)
    return registry


def spec(start, *props, select_set=(), skip=False):
    return Q.FilterSpec(
        objectSet=[Q.ObjectSpec(obj=start.ref, skip=skip, selectSet=list(select_set))],
        propSet=list(props),
    )


def wanted(kind, *paths):
    return Q.PropertySpec(type=kind, pathSet=list(paths))


def test_a_dotted_path_is_followed_and_stops_at_what_is_unset():
    vm = Machine("vm-1")

    assert value_at(vm, "runtime.host")._moId == "host-1"
    assert value_at(vm, "runtime.bootTime") is None
    assert value_at(vm, "config.hardware.device") is None
    assert value_at(vm, "guest") is None, "vSphere has it, the object does not tell it"


@pytest.mark.parametrize("path", ["shoeSize", "runtime.shoeSize", "runtime.host.name"])
def test_a_path_that_vsphere_does_not_have_is_invalid(path):
    with pytest.raises(vmodl.query.InvalidProperty) as caught:
        value_at(Machine("vm-1"), path)

    assert caught.value.name == path


def test_an_empty_list_is_typed_so_that_it_can_be_sent():
    assert type(value_at(Machine("vm-1"), "datastore")) is not list


def test_a_traversal_that_names_itself_reaches_the_bottom_and_ends():
    leaf = Machine("vm-1")
    inner = Box("group-2", [leaf])
    outer = Box("group-1", [inner])
    inner.content.append(outer)  # a ring: vSphere has none, a wrong spec could make one
    registry = registry_of(outer, inner, leaf)
    walk = Q.TraversalSpec(
        name="down",
        type=vim.Folder,
        path="childEntity",
        skip=False,
        selectSet=[Q.SelectionSpec(name="down")],
    )

    found = select(registry, spec(outer, wanted(vim.VirtualMachine), select_set=[walk]))

    assert [each.ref._moId for each in found] == ["vm-1"]


def test_objects_reached_twice_and_kinds_not_asked_for_are_told_once_and_not_at_all():
    leaf = Machine("vm-1")
    box = Box("group-1", [leaf, leaf])
    walk = Q.TraversalSpec(type=vim.Folder, path="childEntity", skip=False)

    found = select(
        registry_of(box, leaf),
        spec(box, wanted(vim.VirtualMachine, "runtime.powerState"), select_set=[walk]),
    )

    assert [(each.ref._moId, dict(each.values)) for each in found] == [
        ("vm-1", {"runtime.powerState": "poweredOn"})
    ]


def test_a_traversal_that_nobody_named_is_refused():
    box = Box("group-1")
    unknown = Q.SelectionSpec(name="nowhere")

    with pytest.raises(vmodl.fault.InvalidArgument):
        select(registry_of(box), spec(box, wanted(vim.Folder), select_set=[unknown]))


def test_a_start_that_is_gone_is_refused():
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        select(registry_of(), spec(Box("group-1"), wanted(vim.Folder, "name")))


def both(vm, box):
    return Q.FilterSpec(
        objectSet=[Q.ObjectSpec(obj=vm.ref), Q.ObjectSpec(obj=box.ref)],
        propSet=[wanted(vim.VirtualMachine, "runtime.host"), wanted(vim.Folder, "name")],
    )


def test_updates_enter_modify_leave_and_nothing():
    vm, box = Machine("vm-1"), Box("group-1")
    registry = registry_of(vm, box)
    asked = both(vm, box)
    first = advance({}, select(registry, asked), VERSION, None)
    assert {(each.kind, each.obj._moId) for each in first.updates} == {
        ("enter", "vm-1"),
        ("enter", "group-1"),
    }
    assert advance(first.picture, select(registry, asked), VERSION, None).updates == []

    vm.host, box.title = "host-2", None
    second = advance(first.picture, select(registry, asked), VERSION, None)

    changes = {each.obj._moId: each.changeSet[0] for each in second.updates}
    assert (changes["vm-1"].op, changes["vm-1"].val._moId) == ("assign", "host-2")
    assert (changes["group-1"].op, changes["group-1"].val) == ("indirectRemove", None)
    gone = advance(second.picture, [], VERSION, None)
    assert {each.kind for each in gone.updates} == {"leave"}
    assert gone.picture == {}


def test_parts_together_tell_the_same_as_the_whole():
    vm, box = Machine("vm-1"), Box("group-1")
    registry = registry_of(vm, box)
    seen = select(registry, both(vm, box))

    first = advance({}, seen, VERSION, 1)
    second = advance(first.picture, seen, VERSION, 1)

    assert (first.truncated, second.truncated) == (True, False)
    told = [each.obj._moId for each in (*first.updates, *second.updates)]
    assert told == ["vm-1", "group-1"]
    assert second.picture == advance({}, seen, VERSION, None).picture
    assert not advance(second.picture, seen, VERSION, 1).truncated


def test_an_object_with_the_stamp_of_before_is_not_read_again():
    vm, box = Machine("vm-1"), Box("group-1")
    registry = registry_of(vm, box)
    vm.stamp = lambda: "same"
    before = advance({}, select(registry, both(vm, box)), VERSION, None).picture
    vm.host, box.title = "host-2", "another"

    again = select(registry, both(vm, box), before)

    assert [each.obj._moId for each in advance(before, again, VERSION, None).updates] == ["group-1"]
    vm.stamp = lambda: "another"
    now = select(registry, both(vm, box), before)
    assert len(advance(before, now, VERSION, None).updates) == 2


def test_a_forbidden_path_is_missing_whatever_the_stamp_says():
    vm, box = Machine("vm-1"), Box("group-1")
    registry = registry_of(vm, box)
    vm.stamp = lambda: "same"
    before = advance({}, select(registry, both(vm, box)), VERSION, None).picture
    registry.forbidden.add(("vm-1", "runtime.host"))

    (update,) = advance(before, select(registry, both(vm, box), before), VERSION, None).updates

    assert [missing.path for missing in update.missingSet] == ["runtime.host"]
    assert update.changeSet == []
