"""Quiesced VMware snapshots on the simulator: taken, refused, late, removed, never forgotten."""

import json
import subprocess
import sys
import time

import pytest
from pyVmomi import vim

from atoll.director.vmware_hold import VmwareHold, clear_leftovers
from atoll.model.consistency import Consistency
from atoll.model.errors import (
    ConfigurationError,
    UnknownVmError,
    UnprotectableVmError,
    VCenterOperationError,
    VCenterUnreachableError,
)
from atoll.vsphere.client import VCenter
from atoll.vsphere.snapshots import ACCOUNT_KEY, MAX_ACCOUNT_BYTES
from vsphere_site import APP1_UUID, DB1_UUID

NAME, TEXT = "atoll-run-1", "For seconds."
DEADLINE = 60.0


@pytest.fixture
def snapshots(vcenter):
    return vcenter.snapshots("site-a")


def tree(vcenter):
    """Names of db1's snapshots, and whether a disk of it is written to a delta."""
    vm = next(vm for vm in vcenter.inventory().vms if vm.name == "db1")
    return vm.has_snapshot


def state(site):
    return site.simulator.site.vm_named("db1").state


def names(site):
    return [each.name for each in state(site).snapshots]


def test_a_quiesced_snapshot_lives_until_it_is_removed(site, vcenter, snapshots):
    before = time.time()
    snapshot = snapshots.quiesced_snapshot(DB1_UUID, NAME, TEXT, DEADLINE)
    assert (snapshot.vm, snapshot.name, snapshot.quiesced) == ("db1", NAME, True)
    assert before - 1 <= snapshot.began_at <= snapshot.created_at + 1
    assert snapshot.created_at <= snapshot.ended_at + 1 <= time.time() + 2
    assert snapshots.present(DB1_UUID, NAME) == (snapshot.moref,)
    [kept] = state(site).snapshots
    assert kept.description == "For seconds. [atoll site site-a]"
    assert tree(vcenter)

    snapshots.remove(DB1_UUID, NAME, DEADLINE)

    assert snapshots.present(DB1_UUID, NAME) == ()
    assert not tree(vcenter)
    snapshots.remove(DB1_UUID, NAME, DEADLINE)


def test_memory_is_left_out_and_the_quiescing_is_limited_in_minutes(site, vcenter, monkeypatch):
    from atoll_lab.vcenter.objects.vm_snapshots import SnapshotHolder

    asked = []
    take = SnapshotHolder.create_snapshot_ex
    monkeypatch.setattr(
        SnapshotHolder,
        "create_snapshot_ex",
        lambda self, call, **given: asked.append(given) or take(self, call, **given),
    )
    for seconds in (30.0, 900.0, 99999.0):
        vcenter.snapshots("s").quiesced_snapshot(DB1_UUID, NAME, TEXT, seconds)
        vcenter.snapshots("s").remove(DB1_UUID, NAME, DEADLINE)
    assert [given["quiesceSpec"].timeout for given in asked] == [5, 15, 240]
    assert {given["memory"] for given in asked} == {False}


def test_a_vcenter_without_the_newer_call_is_asked_by_the_older_one(site, snapshots):
    site.control.inject_fault("CreateSnapshotEx_Task", fault="vmodl.fault.MethodNotFound")
    assert snapshots.quiesced_snapshot(DB1_UUID, NAME, TEXT, DEADLINE).quiesced
    assert [rule["fired"] for rule in site.control.faults()] == [1]


def test_a_guest_that_was_not_quiesced_is_told_as_such(site, snapshots):
    site.control.change_vm("db1", {"tools.quiesces": False})
    assert not snapshots.quiesced_snapshot(DB1_UUID, NAME, TEXT, DEADLINE).quiesced


REFUSED = {
    "suspended": ({"suspended": True}, "it is suspended"),
    "off": ({"powered_on": False}, "it is switched off"),
    "template": ({"template": True}, "it is a template"),
    "no Tools": ({"tools.running": "guestToolsNotRunning"}, "VMware Tools does not run in it"),
    "Fault Tolerance": ({"fault_tolerance": "running"}, "it is protected by Fault Tolerance"),
    "shared bus": ({"bus_sharing": "physicalSharing"}, "shares its bus (physicalSharing)"),
    "32 deltas": ({"deltas.left": 32}, "its disks lie on 32 deltas already"),
}


@pytest.mark.parametrize(("changes", "reason"), REFUSED.values(), ids=list(REFUSED))
def test_a_vm_that_cannot_have_one_is_refused_with_the_reason(site, snapshots, changes, reason):
    site.control.change_vm("db1", changes)
    refusals = snapshots.refusals([DB1_UUID, APP1_UUID])
    assert any(reason in each for each in refusals[DB1_UUID])
    assert refusals[APP1_UUID] == ()
    with pytest.raises(UnprotectableVmError, match="VM db1 cannot be held by a VMware snapshot"):
        snapshots.quiesced_snapshot(DB1_UUID, NAME, TEXT, DEADLINE)
    assert names(site) == []


DISKS = {
    "physical": ({"kind": "rdm"}, "Hard disk 2 is a raw device mapping in physical mode"),
    "independent": ({"mode": "independent_persistent"}, "Hard disk 2 is independent"),
    "multi-writer": ({"sharing": "sharingMultiWriter"}, "Hard disk 2 is shared with other VMs"),
}


@pytest.mark.parametrize(("changes", "reason"), DISKS.values(), ids=list(DISKS))
def test_a_disk_that_snapshots_leave_out_is_a_reason(site, snapshots, changes, reason):
    with site.simulator.site.change():
        for field, value in changes.items():
            setattr(state(site).disks[1], field, value)
    [told] = snapshots.refusals([DB1_UUID])[DB1_UUID]
    assert reason in told


def test_vsphere_itself_makes_no_more_than_32_levels(site, snapshots, monkeypatch):
    from atoll.vsphere import snapshot_state

    monkeypatch.setattr(snapshot_state, "MAX_DELTAS", 99)
    site.control.change_vm("db1", {"deltas.left": 32})
    with pytest.raises(VCenterOperationError, match="too many snapshot levels"):
        snapshots.quiesced_snapshot(DB1_UUID, NAME, TEXT, DEADLINE)


def test_one_on_top_of_others_goes_and_they_stay(site, vcenter, snapshots, stock):
    vm = stock.content.searchIndex.FindByUuid(None, DB1_UUID, True, True)
    wait_for(stock, vm.CreateSnapshot_Task("before the upgrade", "", False, False))
    planned = vcenter.placement([DB1_UUID])[DB1_UUID]
    snapshots.quiesced_snapshot(DB1_UUID, NAME, TEXT, DEADLINE)
    assert vcenter.placement([DB1_UUID])[DB1_UUID].disks != planned.disks
    snapshots.remove(DB1_UUID, NAME, DEADLINE)
    assert names(site) == ["before the upgrade"]
    assert vcenter.placement([DB1_UUID])[DB1_UUID] == planned


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("later", [True, False])
def test_deltas_that_were_there_before_are_not_merged(site, vcenter, snapshots, noted, later):
    site.control.change_vm("db1", {"deltas.left": 2, "deltas.noted": noted})
    planned = vcenter.placement([DB1_UUID])[DB1_UUID]
    snapshots.quiesced_snapshot(DB1_UUID, NAME, TEXT, DEADLINE)
    keeper = vcenter.snapshots("site-a") if later else snapshots
    keeper.remove(DB1_UUID, NAME, DEADLINE)
    assert (names(site), state(site).deltas.left) == ([], 2)
    assert vcenter.placement([DB1_UUID])[DB1_UUID] == planned


@pytest.mark.parametrize("later", [True, False])
def test_a_delta_more_than_before_is_merged_with_them(site, vcenter, snapshots, later):
    site.control.change_vm("db1", {"deltas.left": 1, "deltas.leave": 1})
    snapshots.quiesced_snapshot(DB1_UUID, NAME, TEXT, DEADLINE)
    keeper = vcenter.snapshots("site-a") if later else snapshots
    keeper.remove(DB1_UUID, NAME, DEADLINE)
    assert state(site).deltas.left == 0


def test_somebody_elses_snapshot_is_never_touched(site, vcenter, snapshots, stock):
    theirs = vcenter.snapshots("site-b")
    theirs.quiesced_snapshot(DB1_UUID, NAME, TEXT, DEADLINE)
    assert snapshots.refusals([DB1_UUID]) == {DB1_UUID: ()}

    snapshots.remove(DB1_UUID, NAME, DEADLINE)

    assert names(site) == [NAME]
    assert snapshots.leftovers() == ()
    assert [each.name for each in theirs.leftovers()] == [NAME]


def test_a_snapshot_by_hand_with_our_name_is_not_ours(site, snapshots, stock):
    vm = stock.content.searchIndex.FindByUuid(None, DB1_UUID, True, True)
    task = vm.CreateSnapshot_Task("atoll-mine", "before the upgrade", False, False)
    wait_for(stock, task)
    assert snapshots.leftovers() == ()
    snapshots.remove(DB1_UUID, "atoll-mine", DEADLINE)
    assert names(site) == ["atoll-mine"]


def test_theirs_on_top_of_ours_stays_when_ours_is_removed(site, snapshots, stock):
    snapshots.quiesced_snapshot(DB1_UUID, NAME, TEXT, DEADLINE)
    vm = stock.content.searchIndex.FindByUuid(None, DB1_UUID, True, True)
    wait_for(stock, vm.CreateSnapshot_Task("theirs", "", False, False))
    snapshots.remove(DB1_UUID, NAME, DEADLINE)
    assert names(site) == ["theirs"]


def wait_for(stock, task):
    from atoll.vsphere.tasks import await_task

    return await_task(stock.content, task, "work", DEADLINE)


def test_a_failed_snapshot_says_why(site, snapshots):
    site.control.inject_fault(
        "CreateSnapshotEx_Task", fault="vim.fault.ApplicationQuiesceFault", when="task"
    )
    with pytest.raises(VCenterOperationError, match="quiesced snapshot of VM db1: Injected"):
        snapshots.quiesced_snapshot(DB1_UUID, NAME, TEXT, DEADLINE)
    snapshots.remove(DB1_UUID, NAME, DEADLINE)


def test_a_snapshot_that_hangs_is_cancelled_at_the_deadline(site, snapshots):
    site.control.set_task_seconds("CreateSnapshotEx_Task", 600.0)
    with pytest.raises(VCenterOperationError, match=r"within 1 s and was told to stop"):
        snapshots.quiesced_snapshot(DB1_UUID, NAME, TEXT, 1.0)
    snapshots.remove(DB1_UUID, NAME, DEADLINE)
    assert names(site) == []


def test_one_that_comes_although_it_was_cancelled_is_waited_for_and_removed(site, snapshots):
    # From here on the task cannot be cancelled any more.
    site.control.inject_fault("CreateSnapshotEx_Task", delay_seconds=3.0, when="task")
    with pytest.raises(VCenterOperationError, match="was told to stop"):
        snapshots.quiesced_snapshot(DB1_UUID, NAME, TEXT, 1.0)
    assert names(site) == []
    snapshots.remove(DB1_UUID, NAME, DEADLINE)
    assert names(site) == []
    [task] = [
        site.simulator.site.registry.get(moid)
        for moid in site.simulator.site.tasks.recent(state(site).moid)
        if "CreateSnapshot" in site.simulator.site.registry.get(moid)._method
    ]
    assert task._state == "success"


def test_one_whose_answer_was_lost_is_removed(site, snapshots):
    site.control.inject_fault("CreateSnapshotEx_Task", fault="drop", when="after")
    with pytest.raises(VCenterUnreachableError):
        snapshots.quiesced_snapshot(DB1_UUID, NAME, TEXT, DEADLINE)
    snapshots.remove(DB1_UUID, NAME, DEADLINE)
    assert names(site) == []


@pytest.mark.parametrize("when", ["before", "task"])
def test_a_removal_that_fails_is_tried_again(site, snapshots, when):
    snapshots.quiesced_snapshot(DB1_UUID, NAME, TEXT, DEADLINE)
    site.control.inject_fault("RemoveSnapshot_Task", fault="vim.fault.FileLocked", when=when)
    snapshots.remove(DB1_UUID, NAME, DEADLINE)
    assert names(site) == []
    assert [rule["fired"] for rule in site.control.faults()] == [1]


def test_a_removal_whose_answer_was_lost_is_verified(site, snapshots):
    snapshots.quiesced_snapshot(DB1_UUID, NAME, TEXT, DEADLINE)
    site.control.set_task_seconds("RemoveSnapshot_Task", 1.0)
    site.control.inject_fault("RemoveSnapshot_Task", fault="drop", when="after")
    snapshots.remove(DB1_UUID, NAME, DEADLINE)
    assert names(site) == []


def test_a_removal_that_keeps_failing_says_what_is_left(site, snapshots):
    snapshots.quiesced_snapshot(DB1_UUID, NAME, TEXT, DEADLINE)
    site.control.inject_fault(
        "RemoveSnapshot_Task", fault="vim.fault.FileLocked", when="task", count=99
    )
    with pytest.raises(VCenterOperationError, match=r"is not wholly removed: .*FileLocked"):
        snapshots.remove(DB1_UUID, NAME, 2.0)
    assert names(site) == [NAME]


@pytest.mark.parametrize("noted", [True, False])
def test_a_delta_that_a_removal_leaves_behind_is_consolidated(site, vcenter, snapshots, noted):
    site.control.change_vm("db1", {"deltas.leave": 1, "deltas.noted": noted, "deltas.refuse": 1})
    snapshots.quiesced_snapshot(DB1_UUID, NAME, TEXT, DEADLINE)
    snapshots.remove(DB1_UUID, NAME, DEADLINE)
    assert (state(site).deltas.left, state(site).deltas.leave) == (0, 0)
    assert not tree(vcenter)


def test_a_delta_that_cannot_be_consolidated_is_an_error(site, snapshots):
    site.control.change_vm("db1", {"deltas.leave": 1, "deltas.refuse": 99})
    snapshots.quiesced_snapshot(DB1_UUID, NAME, TEXT, DEADLINE)
    with pytest.raises(VCenterOperationError, match=r"is not wholly removed: .*locked"):
        snapshots.remove(DB1_UUID, NAME, 2.0)


def test_a_vm_that_is_gone_needs_no_removal(site, snapshots):
    snapshots.quiesced_snapshot(DB1_UUID, NAME, TEXT, DEADLINE)
    site.control.remove_vm("db1")
    snapshots.remove(DB1_UUID, NAME, DEADLINE)
    with pytest.raises(UnknownVmError):
        snapshots.present(DB1_UUID, NAME)
    assert snapshots.refusals([DB1_UUID]) == {DB1_UUID: ("vCenter does not know it any more",)}


def test_an_expired_session_takes_no_second_snapshot(site, snapshots):
    site.control.expire_sessions()
    snapshots.quiesced_snapshot(DB1_UUID, NAME, TEXT, DEADLINE)
    site.control.expire_sessions()
    assert names(site) == [NAME]
    snapshots.remove(DB1_UUID, NAME, DEADLINE)
    assert names(site) == []


def test_leftovers_are_found_by_another_process_and_cleared(site, snapshots):
    snapshots.quiesced_snapshot(DB1_UUID, NAME, TEXT, DEADLINE)
    snapshots.quiesced_snapshot(APP1_UUID, "atoll-run-0", TEXT, DEADLINE)
    with VCenter.connect(site.settings()) as later:
        keeper = later.snapshots("site-a")
        assert {(each.vm, each.name) for each in keeper.leftovers()} == {
            ("db1", NAME),
            ("app1", "atoll-run-0"),
        }
        cleared = clear_leftovers(keeper, DEADLINE, set)
    assert list(cleared.values()) == [None, None]
    assert names(site) == []


HOLD_FOR_EVER = """
import json, sys, time
from pathlib import Path
from atoll.director.vmware_hold import VmwareHold
from atoll.vsphere.client import VCenter, VCenterSettings
given = json.loads(sys.stdin.readline())
vcenter = VCenter.connect(VCenterSettings(**{**given, "ca_file": Path(given["ca_file"])}))
vms = [vm for vm in vcenter.inventory().vms if vm.name in ("db1", "app1")]
hold = VmwareHold(vcenter.snapshots("site-a"), "run-1", {})
hold.prepare(vms)
hold.hold(vms, 60.0)
print("held", flush=True)
time.sleep(600)
"""


def test_what_a_killed_director_leaves_is_cleared_by_the_next(site, snapshots):
    settings = site.settings()
    given = {
        "host": settings.host,
        "port": settings.port,
        "user": settings.user,
        "password": settings.password,
        "ca_file": str(settings.ca_file),
    }
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_FOR_EVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as director:
        director.stdin.write(json.dumps(given) + "\n")
        director.stdin.flush()
        assert director.stdout.readline() == "held\n"
        director.kill()
    assert names(site) == ["atoll-run-1"]
    cleared = clear_leftovers(snapshots, DEADLINE, set)
    assert {each.vm for each in cleared} == {"db1", "app1"}
    assert set(cleared.values()) == {None}
    assert names(site) == []


def test_guestinfo_is_read_and_never_too_much_of_it(site, snapshots):
    assert snapshots.account(DB1_UUID) is None
    site.control.change_vm("db1", {"tools.guestinfo": {ACCOUNT_KEY: "{}", "guestinfo.ip": "::1"}})
    assert snapshots.account(DB1_UUID) == "{}"
    long = "x" * (MAX_ACCOUNT_BYTES + 1)
    site.control.change_vm("db1", {"tools.guestinfo": {ACCOUNT_KEY: long}})
    assert snapshots.account(DB1_UUID) is None


def test_names_and_marks_are_checked(vcenter, snapshots):
    with pytest.raises(ConfigurationError, match="cannot mark"):
        vcenter.snapshots("my site]")
    with pytest.raises(ValueError, match="no name"):
        snapshots.quiesced_snapshot(DB1_UUID, "backup", TEXT, DEADLINE)


def test_a_user_without_the_privilege_is_told_which(site, snapshots):
    site.control.inject_fault("CreateSnapshotEx_Task", fault="vim.fault.NoPermission")
    with pytest.raises(VCenterOperationError, match="lacks the privilege"):
        snapshots.quiesced_snapshot(DB1_UUID, NAME, TEXT, DEADLINE)


def test_a_hold_of_two_vms_goes_through_vcenter(site, vcenter, snapshots):
    vms = [vm for vm in vcenter.inventory().vms if vm.name in ("db1", "app1")]
    site.control.change_vm("app1", {"tools.quiesces": False})
    hold = VmwareHold(snapshots, "run-1", {}, 0.1)
    hold.prepare(vms)
    held = hold.hold(vms, DEADLINE)
    assert {held[uuid].snapshot.quiesced for uuid in (DB1_UUID,)} == {True}
    assert names(site) == ["atoll-run-1"]
    verdicts = hold.release(DEADLINE)
    assert verdicts[DB1_UUID].consistency is Consistency.FILESYSTEM
    assert verdicts[APP1_UUID].consistency is Consistency.CRASH
    assert names(site) == []


def test_the_stock_client_sees_the_delta_with_its_parent(site, snapshots, stock):
    snapshots.quiesced_snapshot(DB1_UUID, NAME, TEXT, DEADLINE)
    vm = stock.content.searchIndex.FindByUuid(None, DB1_UUID, True, True)
    disks = [
        each for each in vm.config.hardware.device if isinstance(each, vim.vm.device.VirtualDisk)
    ]
    assert [each.backing.fileName for each in disks] == [
        "[vmfs1] db1/db1-000001.vmdk",
        "[vmfs2] db1/db1_1-000001.vmdk",
    ]
    assert disks[0].backing.parent.fileName == "[vmfs1] db1/db1.vmdk"
