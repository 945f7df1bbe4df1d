"""Following vCenter live: one suite over Atoll's simulator and over vcsim."""

import threading

import pytest

from atoll.model.changes import ChangeKind
from atoll.vsphere.client import VCenter
from vsphere_farms import Farm, simulator_farm, vcsim_farm
from watching import expect


@pytest.fixture(params=["simulator", "vcsim"])
def farm(request, tmp_path):
    if request.param == "simulator":
        made = simulator_farm(tmp_path)
    else:
        made = vcsim_farm(request.getfixturevalue("vcsim"))
    with made as running:
        yield running


@pytest.fixture
def vcenter(farm: Farm):
    with VCenter.connect(farm.settings) as connected:
        yield connected


@pytest.fixture
def watch(vcenter: VCenter):
    with vcenter.follow() as following:
        yield following


def test_the_picture_is_what_a_bulk_read_gives(farm, vcenter):
    read = vcenter.inventory()
    name, _ = farm.running()
    uuids = [vm.instance_uuid for vm in read.vms]
    places = vcenter.placement(uuids)

    with vcenter.follow():
        assert vcenter.inventory() == read
        assert vcenter.placement(uuids) == places
        assert name in {vm.name for vm in vcenter.inventory().vms}


def test_a_placement_after_a_move_is_never_the_one_before(farm, vcenter, watch):
    name, uuid = farm.running()
    for _ in range(5):
        moved_to = farm.move(name)
        assert vcenter.placement([uuid])[uuid].host == moved_to
    change = expect(watch, ChangeKind.VM_MOVED_HOST, name)
    assert change.instance_uuid == uuid
    assert change.before != change.after


def test_power_is_known_at_once_and_told(farm, vcenter, watch):
    name, uuid = farm.running()

    farm.power(name, on=False)
    assert not vcenter.placement([uuid])[uuid].powered_on
    farm.power(name, on=True)
    assert vcenter.placement([uuid])[uuid].powered_on

    change = expect(watch, ChangeKind.VM_POWER, name)
    assert (change.before, change.after) == ("poweredOn", "poweredOff")


def test_a_snapshot_is_known_when_it_appears_and_when_it_is_gone(farm, vcenter, watch):
    name, uuid = farm.running()

    farm.snapshot(name, "somebody's")
    assert vcenter.placement([uuid])[uuid].has_snapshot
    farm.remove_snapshots(name)
    assert not vcenter.placement([uuid])[uuid].has_snapshot

    assert expect(watch, ChangeKind.VM_SNAPSHOT_APPEARED, name).after == "somebody's"
    assert expect(watch, ChangeKind.VM_SNAPSHOT_GONE, name).before == "somebody's"


def test_a_vm_that_goes_and_comes_back_is_followed(farm, vcenter, watch):
    name, uuid = farm.running()
    farm.power(name, on=False)

    path = farm.unregister(name)
    assert vcenter.placement([uuid]) == {}
    assert name not in {vm.name for vm in vcenter.inventory().vms}
    farm.register(path, name)
    again = farm.vms()[name]  # vcsim gives it another instance UUID
    assert set(vcenter.placement([again])) == {again}

    assert expect(watch, ChangeKind.VM_GONE, name).instance_uuid == uuid
    assert expect(watch, ChangeKind.VM_APPEARED, name).instance_uuid == again


def test_a_new_name_of_a_vm_is_told(farm, vcenter, watch):
    name, uuid = farm.running()

    farm.rename(name, "another name")

    known = {vm.instance_uuid: vm.name for vm in vcenter.inventory().vms}
    assert known[uuid] == "another name"
    assert expect(watch, ChangeKind.VM_RENAMED, "another name").before == name


def test_a_session_that_was_ended_is_opened_again_and_nothing_is_missed(farm, vcenter, watch):
    name, uuid = farm.running()

    farm.end_other_sessions()
    moved_to = farm.move(name)

    assert vcenter.placement([uuid])[uuid].host == moved_to
    assert expect(watch, ChangeKind.VM_MOVED_HOST, name).after == moved_to


def test_two_watches_hear_the_same(farm, vcenter, watch):
    name, uuid = farm.running()
    with VCenter.connect(farm.settings) as other, other.follow() as second:
        moved_to = farm.move(name)

        assert other.placement([uuid]) == vcenter.placement([uuid])
        for each in (watch, second):
            assert expect(each, ChangeKind.VM_MOVED_HOST, name).after == moved_to


def test_questions_of_many_threads_are_all_answered(farm, vcenter, watch):
    name, uuid = farm.running()
    moved_to = farm.move(name)
    hosts = []

    def ask():
        hosts.extend(vcenter.placement([uuid])[uuid].host for _ in range(3))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert hosts == [moved_to] * 12
