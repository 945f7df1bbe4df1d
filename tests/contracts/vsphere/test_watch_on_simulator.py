"""Following vCenter where the simulator can be made to do what vcsim cannot."""

import threading
import uuid
from pathlib import Path

import pytest

from atoll.model.changes import ChangeKind
from atoll.model.errors import AuthenticationError, VCenterOperationError, VCenterUnreachableError
from atoll.vsphere import watch as watch_module
from atoll.vsphere.client import VCenter
from atoll_lab.vcenter.simulator import Simulator
from atoll_lab.vcenter.state import DiskState, VmState
from vsphere_site import (
    APP1_UUID,
    DB1_UUID,
    ESX1,
    ESX2,
    NAA2,
    PASSWORD,
    USER,
    SimulatedSite,
    simulated_site,
)
from watching import expect, told


@pytest.fixture
def watch(vcenter: VCenter):
    with vcenter.follow() as following:
        yield following


def moref(site: SimulatedSite, name: str) -> str:
    return site.simulator.site.vm_named(name).moid


def session_objects(site: SimulatedSite) -> list[str]:
    objects = site.simulator.site.registry._objects.values()
    return [managed.moid for managed in objects if managed.session is not None]


def add_many(site: SimulatedSite, count: int) -> list[str]:
    """More VMs on one datastore, and their instance UUIDs."""
    inside = site.simulator.site
    store, host = inside.datastore_named("vmfs1").moid, inside.host_named(ESX1.name).moid
    uuids = [str(uuid.UUID(int=number)) for number in range(1, count + 1)]
    with inside.change():
        for number, each in enumerate(uuids):
            disk = DiskState(2000, "Hard disk 1", f"v{number}/v{number}.vmdk", 1 << 30, store)
            inside.add_vm(
                VmState(
                    moid=inside.new_id("vm"),
                    name=f"v{number}",
                    instance_uuid=each,
                    bios_uuid=each,
                    host=host,
                    datastore=store,
                    vmx_path=f"v{number}/v{number}.vmx",
                    guest_os="Other",
                    disks=[disk],
                    powered_on=True,
                )
            )
    return uuids


def test_two_thousand_vms_are_followed(site, vcenter):
    uuids = add_many(site, 2000)

    with vcenter.follow() as watch:
        assert len(vcenter.inventory().vms) == 2003
        site.control.vmotion("v1999", ESX2.name)
        places = vcenter.placement(uuids)
        assert places[uuids[1999]].host == ESX2.name
        assert {places[each].host for each in uuids[:1999]} == {ESX1.name}
        assert told(watch) == {(ChangeKind.VM_MOVED_HOST, "v1999")}


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_answers_in_parts_give_the_same_picture(site, vcenter, limit):
    site.simulator.site.update_limit = limit
    read = vcenter.inventory()

    with vcenter.follow() as watch:
        assert vcenter.inventory() == read
        inside = site.simulator.site
        with inside.change():
            for vm in inside.state.vms:
                vm.powered_on = not vm.powered_on
        assert vcenter.placement([DB1_UUID, APP1_UUID])[DB1_UUID].powered_on is False
        assert told(watch) == {(ChangeKind.VM_POWER, name) for name in ("db1", "app1", "scratch1")}


def test_what_changes_between_two_parts_of_an_answer_is_not_missed(site, vcenter, watch):
    """The first part was calculated before the question; the whole answer proves nothing of it."""
    inside = site.simulator.site
    inside.update_limit = 1
    since = watch.latest
    # Let the watch be told one part, and hold the rest back for a while.
    site.control.inject_fault("WaitForUpdatesEx", delay_seconds=1.0, when="after")
    with inside.change():
        for vm in inside.state.vms:
            vm.template = not vm.template
    while site.control.faults()[0]["fired"] == 0:
        site.control.ping()
    site.control.vmotion("db1", ESX2.name)

    assert vcenter.placement([DB1_UUID])[DB1_UUID].host == ESX2.name
    assert (ChangeKind.VM_TEMPLATE, "db1") in told(watch, since)


def test_an_answer_that_was_on_its_way_proves_nothing_of_what_came_after(site, vcenter, watch):
    site.control.inject_fault("WaitForUpdatesEx", delay_seconds=1.5, when="after", count=2)
    early = threading.Thread(target=vcenter.placement, args=([APP1_UUID],))
    early.start()  # its proof is calculated, then held back
    while site.control.faults()[0]["fired"] == 0:
        site.control.ping()
    site.control.vmotion("db1", ESX2.name)

    assert vcenter.placement([DB1_UUID])[DB1_UUID].host == ESX2.name
    early.join()


def test_without_proof_in_time_vcenter_is_read_instead(site, vcenter, watch, monkeypatch):
    monkeypatch.setattr(watch_module, "_PROOF_SECONDS", 0.1)
    site.control.inject_fault("WaitForUpdatesEx", delay_seconds=2.0, when="before", count=2)
    site.control.inject_fault(
        "CancelWaitForUpdates", fault="vmodl.fault.HostCommunication", count=99
    )
    site.control.vmotion("db1", ESX2.name)

    assert vcenter.placement([DB1_UUID])[DB1_UUID].host == ESX2.name
    assert {host.name for host in vcenter.inventory().hosts} >= {ESX1.name, ESX2.name}


def test_a_cancel_without_effect_is_repeated(site, vcenter, watch):
    site.control.inject_fault("CancelWaitForUpdates", fault="drop", count=2)

    assert vcenter.placement([DB1_UUID])[DB1_UUID].host == ESX1.name
    assert site.control.faults()[0]["fired"] == 2


def test_a_session_that_expires_in_the_middle_of_a_wait(site, vcenter, watch):
    vcenter.placement([DB1_UUID])
    logins = site.control.logins()

    assert site.control.expire_sessions() == 2
    site.control.vmotion("db1", ESX2.name)

    assert expect(watch, ChangeKind.VM_MOVED_HOST, "db1").after == ESX2.name
    assert (ChangeKind.VCENTER_LOST, "") not in told(watch)
    assert site.control.logins() == logins + 1, "the watch alone, once"
    assert vcenter.placement([DB1_UUID])[DB1_UUID].host == ESX2.name


def test_vcenter_restarts_and_what_happened_meanwhile_is_told(site, vcenter, watch):
    site.simulator.close()
    expect(watch, ChangeKind.VCENTER_LOST)
    with pytest.raises(VCenterUnreachableError):
        vcenter.placement([DB1_UUID])

    with Simulator(site.directory, site.fabric, USER, PASSWORD) as again:
        again.site.vm_named("db1").move(again.site.host_named(ESX2.name).moid, None)
        with again.site.change():
            again.site.remove_vm(again.site.vm_named("app1").moid)
        back = expect(watch, ChangeKind.VCENTER_BACK)

        assert expect(watch, ChangeKind.VM_MOVED_HOST, "db1", back.number).after == ESX2.name
        expect(watch, ChangeKind.VM_GONE, "app1", back.number)
        assert set(vcenter.placement([DB1_UUID, APP1_UUID])) == {DB1_UUID}
        watch.close()


def test_a_password_changed_meanwhile_is_not_tried_over_and_over(site, vcenter, watch):
    site.simulator.site.sessions._password = "changed"
    site.control.expire_sessions()
    expect(watch, ChangeKind.VCENTER_LOST)
    site.control.inject_fault("Login", delay_seconds=0.0, count=99)

    with pytest.raises(AuthenticationError):
        vcenter.inventory()

    assert site.control.faults()[0]["fired"] == 1, "the reader's own, none of the watch"


def test_an_unexpected_answer_ends_no_watch(site, vcenter, watch, monkeypatch):
    monkeypatch.setattr(watch_module, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(watch._picture, "apply", lambda _: 1 / 0)
    site.control.vmotion("db1", ESX2.name)

    assert "ZeroDivisionError" in expect(watch, ChangeKind.VCENTER_LOST).after
    expect(watch, ChangeKind.VCENTER_BACK)
    assert expect(watch, ChangeKind.VM_MOVED_HOST, "db1").after == ESX2.name


def test_a_datastore_with_another_name_changes_no_vm(site, vcenter, watch):
    site.control.rename_datastore("vmfs2", "gold")

    found = vcenter.inventory()
    db1 = next(vm for vm in found.vms if vm.name == "db1")
    assert [disk.datastore for disk in db1.disks] == ["vmfs1", "gold"]
    assert vcenter.placement([APP1_UUID])[APP1_UUID].datastores == ("gold",)
    assert told(watch) == {(ChangeKind.DATASTORE_RENAMED, "gold")}


def test_a_storage_vmotion_is_a_move_and_other_files(site, vcenter, watch):
    site.control.vmotion("app1", datastore="vmfs1")

    assert vcenter.placement([APP1_UUID])[APP1_UUID].disks == ((2000, "vmfs1", "app1/app1.vmdk"),)
    change = expect(watch, ChangeKind.VM_MOVED_DATASTORE, "app1")
    assert (change.before, change.after) == ("vmfs2", "vmfs1")
    expect(watch, ChangeKind.VM_DISKS, "app1")


def test_hosts_and_luns_come_and_go(site, vcenter, watch):
    site.control.add_host("esx9.lab", "iqn.1998-01.com.vmware:esx9")
    assert "esx9.lab" in {host.name for host in vcenter.inventory().hosts}
    expect(watch, ChangeKind.HOST_APPEARED, "esx9.lab")

    site.fabric.present(NAA2, "iqn.1998-01.com.vmware:esx9")
    site.control.add_portal("esx9.lab", site.fabric.portal)
    site.control.rescan("esx9.lab")
    assert expect(watch, ChangeKind.LUN_APPEARED, "esx9.lab").after == NAA2

    site.control.remove_vm("db1")
    site.control.remove_vm("app1")
    for host in (ESX1.name, ESX2.name):
        site.control.rescan(host)
    assert expect(watch, ChangeKind.LUN_GONE, ESX1.name).before == NAA2
    site.fabric.present(NAA2)
    site.control.rescan("esx9.lab")
    assert expect(watch, ChangeKind.DATASTORE_GONE, "vmfs2").before == NAA2


def test_a_host_that_vcenter_lost_contact_with_proves_nothing(site, vcenter, watch):
    site.control.set_host_connected(ESX1.name, False)

    assert set(vcenter.placement([DB1_UUID, APP1_UUID])) == {APP1_UUID}
    left_out = {vm.name: vm.reason for vm in vcenter.inventory().left_out}
    assert "no contact" in left_out["db1"]
    assert expect(watch, ChangeKind.VM_CONTACT, "db1").after == "disconnected"

    site.control.set_host_connected(ESX1.name, True)
    assert set(vcenter.placement([DB1_UUID])) == {DB1_UUID}


def test_a_path_that_may_not_be_read_is_never_taken_for_unset(site, vcenter, watch):
    site.control.forbid(moref(site, "db1"), "snapshot")
    for ask in (vcenter.inventory, lambda: vcenter.placement([DB1_UUID])):
        with pytest.raises(VCenterOperationError, match=r"lacks the privilege System\.Read"):
            ask()

    site.control.allow_all()
    assert not vcenter.placement([DB1_UUID])[DB1_UUID].has_snapshot
    assert {vm.name for vm in vcenter.inventory().vms} == {"db1", "app1", "scratch1"}


def test_a_refusal_from_the_beginning_is_told_by_the_reader(site, vcenter):
    site.control.forbid(moref(site, "db1"), "config.hardware.device")

    with vcenter.follow(), pytest.raises(VCenterOperationError, match="lacks the privilege"):
        vcenter.inventory()


def test_following_leaves_nothing_behind(site, vcenter):
    with vcenter.follow():
        assert session_objects(site)
        assert len(site.simulator.site.sessions.all()) == 2

    assert session_objects(site) == []
    assert len(site.simulator.site.sessions.all()) == 1
    assert not [each for each in threading.enumerate() if each.name == "vcenter-watch"]


def test_beginning_anew_leaves_nothing_of_the_failed_beginnings(site, vcenter, watch, monkeypatch):
    monkeypatch.setattr(watch_module, "_FIRST_PAUSE_SECONDS", 0.01)
    used = session_objects(site)
    for method in ("WaitForUpdatesEx", "CreateFilter", "CreatePropertyCollector"):
        since = watch.latest
        site.control.inject_fault("WaitForUpdatesEx", fault="vmodl.fault.HostCommunication")
        site.control.inject_fault(method, fault="vmodl.fault.HostCommunication", count=2)
        site.control.set_power("app1", False)
        expect(watch, ChangeKind.VCENTER_BACK, since=since)
        site.control.set_power("app1", True)

    assert all(rule["fired"] for rule in site.control.faults())
    vcenter.placement([APP1_UUID])
    assert len(session_objects(site)) == len(used) == 3


def test_followers_share_a_watch_until_the_last_one_leaves(site, vcenter):
    with vcenter.follow() as first:
        with vcenter.follow() as second:
            assert first is second
        site.control.vmotion("db1", ESX2.name)
        expect(first, ChangeKind.VM_MOVED_HOST, "db1")
    assert first.wait_for_change(first.latest, 3600).changes == (), (
        "a closed watch waits for nothing"
    )
    with vcenter.follow() as third:
        assert third is not first


def test_a_vcenter_that_does_not_answer_cannot_be_followed(site, vcenter):
    site.simulator.close()

    with pytest.raises(VCenterUnreachableError), vcenter.follow():
        raise AssertionError("there is nothing to follow")
    assert not [each for each in threading.enumerate() if each.name == "vcenter-watch"]


def test_reading_is_all_that_following_does(tmp_path: Path, monkeypatch):
    called = set()
    from atoll_lab.vcenter.objects.base import Managed

    invoke = Managed.invoke

    def recorded(self, call, method, arguments):
        called.add(method)
        return invoke(self, call, method, arguments)

    with simulated_site(tmp_path) as site, VCenter.connect(site.settings()) as vcenter:
        monkeypatch.setattr(Managed, "invoke", recorded)
        with vcenter.follow():
            vcenter.inventory()
            site.control.vmotion("db1", ESX2.name)
            vcenter.placement([DB1_UUID])

    assert called == {
        "RetrieveServiceContent",
        "Login",
        "CreateContainerView",
        "CreatePropertyCollector",
        "CreateFilter",
        "WaitForUpdatesEx",
        "CancelWaitForUpdates",
        "DestroyPropertyCollector",
        "DestroyView",
        "Logout",
    }
