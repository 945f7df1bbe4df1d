"""A thousand VMs over 40 LUNs in 10 groups, shown on the island: how long a refresh takes, and memory.

The storage is the embedded engine over real iSCSI, the volumes are VMFS, vCenter is the simulator in
a process of its own, whose work on this machine's processors is part of the time.
"""

import os
import resource
import secrets
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from atoll.director.certificate import certificate
from atoll.director.plan import make_plan
from atoll.island.placing import clear, refresh
from atoll.island.presentation import Island, island_host
from atoll.island.runs import find_run
from atoll.model.consistency import Consistency, ConsistencyProof
from atoll.storage.drivers.embedded import create_pool, open_embedded
from atoll.storage.engine import ManagedEngine
from atoll.vsphere.client import VCenter, VCenterSettings
from atoll_lab.blueprint import HOSTS
from atoll_lab.pool import create_loop_pool, destroy, image
from atoll_lab.vcenter.control import Control, ControlError, NewDisk
from atoll_lab.vmfs import format_volume
from bench.report import Figure, figure, publish, say

VMS, GROUPS, LUNS_IN_GROUP = 1000, 10, 4
LUN_BYTES = 600 << 20
DISK_BYTES = 1 << 20
ESX, _, ISLAND = HOSTS
_USER = "bench@vsphere.local"
_START_SECONDS = 60.0


def main() -> None:
    """Measure and publish."""
    publish("island_farm", farm_figures())


@dataclass(frozen=True)
class Farm:
    """The storage with its pool, vCenter with its settings, and what the VMs are called."""

    engine: ManagedEngine
    pool: Path
    vcenter: VCenter
    settings: VCenterSettings
    control: Control
    names: tuple[str, ...]


def farm_figures() -> list[Figure]:
    """`thousand_vm_refresh_seconds` is a refresh of placeholders that are there, as on every day."""
    directory = tempfile.TemporaryDirectory(prefix="atoll-bench-", dir="/var/tmp")
    with directory as name, farm_of_vms(Path(name)) as farm:
        placeholders = farm.vcenter.placeholders(ISLAND.name, "island1-local", "Atoll")
        volumes = farm.vcenter.island_volumes(ISLAND.name)
        host = island_host(farm.vcenter.inventory().hosts, ISLAND.name)
        island = Island(farm.engine, volumes, host, "bench")
        seconds: dict[str, float] = {}
        for run in ("first", "second"):
            say(f"the {run} refresh of {VMS} placeholders")
            planning = time.monotonic()
            capture(farm, run)
            seconds[f"{run} plan"] = time.monotonic() - planning
            began = time.monotonic()
            captured = find_run(farm.engine, run)
            uuids = [vm.instance_uuid for vm in captured.certificate.vms]
            done = refresh(island, placeholders, captured, placeholders.hardware(uuids))
            seconds[run] = time.monotonic() - began
            assert len(done.shown) == VMS, done.kept[:3]
        clearing = time.monotonic()
        done = clear(island, placeholders, None)
        seconds["clear"] = time.monotonic() - clearing
        assert not done.kept, done.kept[:3]
        assert not [group for group in farm.engine.groups() if group.clone_of]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [
        figure("thousand_vm_refresh_seconds", [seconds["second"]], "s"),
        figure("thousand_vm_first_refresh_seconds", [seconds["first"]], "s"),
        figure("thousand_vm_plan_and_snapshot_seconds", [seconds["second plan"]], "s"),
        figure("thousand_vm_clear_seconds", [seconds["clear"]], "s"),
        figure("thousand_vm_peak_memory", [peak], "MiB"),
    ]


def capture(farm: Farm, run: str) -> None:
    """What a run leaves on the storage, without its holds."""
    inventory = farm.vcenter.inventory()
    plan = make_plan(run, farm.names, inventory, farm.engine.groups(), ())
    proof = ConsistencyProof("", Consistency.CRASH, (), None, "", run, 0.0, 0.0, "", "")
    words = certificate(plan, {vm.vm.instance_uuid: proof for vm in plan.vms})
    for group in plan.groups:
        farm.engine.snapshot_group(group, run)
        farm.engine.annotate_snapshot(group, run, words)


@contextmanager
def farm_of_vms(directory: Path) -> Iterator[Farm]:
    """The farm, made in an empty directory, while the block lasts."""
    with ExitStack() as stack:
        storage = directory / "storage"
        stack.callback(destroy, storage)
        root = create_loop_pool(storage, 20 << 30)
        create_pool(root, "farm")
        engine = open_embedded(root, durability="cache")
        stack.callback(engine.stop)
        say(f"making {GROUPS * LUNS_IN_GROUP} VMFS volumes")
        portals = set()
        for group in (f"group{number}" for number in range(GROUPS)):
            engine.create_group(group)
            for lun in (f"{group}-lun{number}" for number in range(LUNS_IN_GROUP)):
                naa = engine.create_lun(group, lun, LUN_BYTES).naa
                raw = bytes.fromhex(naa.removeprefix("naa."))
                format_volume(image(root, group, lun), LUN_BYTES, lun, raw)
                shown = engine.present(group, lun, [ESX.iqn])
                portals |= {(portal.address, portal.port) for portal in shown.portals}
        settings = stack.enter_context(_vcenter(directory / "vcenter", portals))
        vcenter = stack.enter_context(VCenter.connect(settings))
        control = Control(directory / "vcenter")
        yield Farm(engine, root, vcenter, settings, control, _add_vms(control))


@contextmanager
def _vcenter(directory: Path, portals: set[tuple[str, int]]) -> Iterator[VCenterSettings]:
    directory.mkdir()
    password = directory / "password"
    password.write_text(secrets.token_urlsafe())
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "atoll_lab.vcenter", "--dir", str(directory)),
            *("--user", _USER, "--password-file", str(password)),
        ]
    )
    try:
        control = Control(directory)
        _await(control)
        for address, port in sorted(portals):
            control.add_portal(ESX.name, f"{address}:{port}")
        control.rescan(ESX.name)
        endpoint = control.endpoint()
        yield VCenterSettings(
            host=endpoint.host,
            port=endpoint.port,
            user=_USER,
            password=password.read_text(),
            ca_file=Path(endpoint.ca_file),
        )
    finally:
        process.terminate()
        process.wait(30)


def _await(control: Control) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            control.ping()
        except ControlError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def _add_vms(control: Control) -> tuple[str, ...]:
    """A disk each, and every tenth a second one on the group's next LUN."""
    say(f"registering {VMS} VMs")
    names = []
    for number in range(VMS):
        name, group = f"vm{number:04}", number % GROUPS
        luns = [f"group{group}-lun{(number // GROUPS + each) % LUNS_IN_GROUP}" for each in (0, 1)]
        stores = luns if number % 10 == 0 else luns[:1]
        disks = [
            NewDisk(2000 + place, f"Hard disk {place + 1}", f"{name}/{place}.vmdk", DISK_BYTES, lun)
            for place, lun in enumerate(stores)
        ]
        vm = str(uuid.UUID(int=number + 1))
        control.add_vm(name, stores[0], f"{name}/{name}.vmx", disks, ESX.name, "debian", vm)
        names.append(name)
    return tuple(names)


if __name__ == "__main__":
    assert os.geteuid() == 0, "needs root"
    main()
