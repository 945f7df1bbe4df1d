"""VMware snapshots: one suite over Atoll's simulator and over vcsim, which nobody here wrote.

vcsim does not know `CreateSnapshotEx_Task` and quiesces nothing, as an old vCenter without Tools.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyVmomi import vim

from atoll.vsphere.client import VCenter
from vsphere_farms import Farm, build_vcsim, simulator_farm, vcsim_farm

NAME, TEXT, DEADLINE = "atoll-run-1", "For seconds.", 60.0


@pytest.fixture(scope="module")
def vcsim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    binary = tmp_path_factory.mktemp("vcsim") / "vcsim"
    missing = build_vcsim(binary)
    if missing is not None:
        pytest.skip(missing)
    return binary


@pytest.fixture(params=["simulator", "vcsim"])
def farm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Farm]:
    if request.param == "vcsim":
        with vcsim_farm(request.getfixturevalue("vcsim")) as farm:
            let_tools_run(farm)
            yield farm
    else:
        with simulator_farm(tmp_path) as farm:
            yield farm


def let_tools_run(farm: Farm) -> None:
    """What vcsim says of VMware Tools is set like this (govmomi, simulator/virtual_machine.go)."""
    option = vim.option.OptionValue(key="SET.guest.toolsRunningStatus", value="guestToolsRunning")
    for vm in farm._all(vim.VirtualMachine):
        farm._do(vm.ReconfigVM_Task(vim.vm.ConfigSpec(extraConfig=[option])))


@pytest.fixture
def vcenter(farm: Farm) -> Iterator[VCenter]:
    with VCenter.connect(farm.settings) as connected:
        yield connected


def has_snapshot(vcenter: VCenter, name: str) -> bool:
    return next(vm.has_snapshot for vm in vcenter.inventory().vms if vm.name == name)


def test_a_snapshot_is_taken_found_and_removed(farm: Farm, vcenter: VCenter) -> None:
    name, uuid = farm.running()
    snapshots = vcenter.snapshots("site-a")
    assert snapshots.refusals([uuid]) == {uuid: ()}
    taken = snapshots.quiesced_snapshot(uuid, NAME, TEXT, DEADLINE)
    assert (taken.vm, taken.instance_uuid, taken.name) == (name, uuid, NAME)
    assert taken.created_at > 0
    assert has_snapshot(vcenter, name)
    assert snapshots.present(uuid, NAME) == (taken.moref,)
    assert [(each.vm, each.name) for each in snapshots.leftovers()] == [(name, NAME)]
    assert snapshots.refusals([uuid]) == {uuid: ()}

    snapshots.remove(uuid, NAME, DEADLINE)

    assert not has_snapshot(vcenter, name)
    assert snapshots.leftovers() == ()
    snapshots.remove(uuid, NAME, DEADLINE)


def test_the_snapshots_of_others_stay(farm: Farm, vcenter: VCenter) -> None:
    name, uuid = farm.running()
    farm.snapshot(name, NAME)
    snapshots = vcenter.snapshots("site-a")
    snapshots.remove(uuid, NAME, DEADLINE)
    assert snapshots.leftovers() == ()
    assert has_snapshot(vcenter, name)


def test_an_expired_session_is_no_obstacle(farm: Farm, vcenter: VCenter) -> None:
    _, uuid = farm.running()
    snapshots = vcenter.snapshots("site-a")
    farm.end_other_sessions()
    taken = snapshots.quiesced_snapshot(uuid, NAME, TEXT, DEADLINE)
    farm.end_other_sessions()
    assert snapshots.present(uuid, NAME) == (taken.moref,)
    snapshots.remove(uuid, NAME, DEADLINE)


def test_a_vm_without_guestinfo_has_no_account(farm: Farm, vcenter: VCenter) -> None:
    _, uuid = farm.running()
    assert vcenter.snapshots("site-a").account(uuid) is None
