"""Standing a site up, step by step; each step finds what is there already and goes on."""

import os
import secrets
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from atoll.guests.authority import Authority
from atoll.guests.enrolment import DEFAULT_PORT, enrol
from atoll.guests.interface import GuestAgent
from atoll.model.errors import AgentUnavailableError, ConfigurationError
from atoll.repository.keys import KeyFile, create_key_file
from atoll.repository.repository import Repository
from atoll.settings import load_settings
from atoll.storage.engine import ManagedEngine
from atoll.wiring import create_system, open_agents, open_engine
from atoll_lab import blueprint
from atoll_lab.errors import LabError
from atoll_lab.guests.image import guest_disks
from atoll_lab.guests.qemu import GuestSpec, IscsiDisk, start
from atoll_lab.places import Places
from atoll_lab.pool import create_loop_pool, image
from atoll_lab.running import LabRecord, read_record, write_record
from atoll_lab.vcenter.control import Control, ControlError, NewDisk
from atoll_lab.vcenter.vmfs_header import read_volume
from atoll_lab.vmfs import Volume, format_volume

Say = Callable[[str], None]
USER = "atoll@vsphere.local"
BOOT_SECONDS = 300.0
"""Software emulation on a busy machine is slow; a quiet one boots in a tenth of it."""
_IDENTITIES = uuid.UUID("a7011000-0000-4000-8000-1ab000000000")


def bring_up(where: Places, say: Say, *, apart: bool = False) -> None:
    """Stand the lab up, or start what of it has stopped.

    A new lab has each LUN in a group of its own when `apart`, else all in one.
    """
    if os.geteuid() != 0:
        raise ConfigurationError("A lab needs root: it makes loop devices and mounts a pool.")
    where.root.parent.mkdir(parents=True, exist_ok=True)
    where.root.mkdir(mode=0o700, exist_ok=True)
    record = read_record(where) or _new_record(where, apart=apart)
    _write_settings(where)
    say("storage pool")
    engine = _storage(where, record, say)
    say("vCenter and three ESX hosts")
    control = _vcenter(where, engine)
    say("repository and agents")
    _repository(where)
    drives = {vm.name: _enrol(where, vm, record) for vm in blueprint.VMS}
    for vm in blueprint.VMS:
        say(f"booting {vm.name}")
        _boot(where, vm, record, engine, control, drives[vm.name])
    _await_agents(where, say)


def instance_uuid(lab: str, vm: str) -> str:
    """A VM's identity: the same whenever the lab of that name is made again."""
    return str(uuid.uuid5(_IDENTITIES, f"{lab}/{vm}"))


def _new_record(where: Places, *, apart: bool) -> LabRecord:
    record = LabRecord(
        name=where.name,
        agent_ports={vm.name: _free_port() for vm in blueprint.VMS},
        lun_groups={
            lun.name: f"{blueprint.GROUP}-{lun.name}" if apart else blueprint.GROUP
            for lun in blueprint.LUNS
        },
    )
    write_record(where, record)
    return record


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _write_settings(where: Places) -> None:
    password = where.root / "vcenter.password"
    if not password.exists():
        password.touch(mode=0o600)
        password.write_text(secrets.token_urlsafe(18) + "\n")
    if not where.settings.exists():
        _write_settings_for_port(where, 443)


def _write_settings_for_port(where: Places, port: int) -> None:
    """The site's atoll.toml; the simulator's port is known once it runs."""
    temporary = where.settings.with_suffix(".new")
    (island,) = (host.name for host in blueprint.HOSTS if host.island)
    temporary.write_text(
        f"""# Settings of lab {where.name}. Paths are relative to this file.
[vcenter]
host = "127.0.0.1"
port = {port}
user = "{USER}"
password_file = "vcenter.password"
ca_file = "vcenter/ca.pem"

[[storage]]
name = "{blueprint.STORAGE}"
driver = "embedded"
root = "storage/pool"
# QEMU flushes when its guest does, so acknowledging from cache loses nothing a guest was promised.
durability = "cache"

[repository]
location = "repository"
key_file = "repository.key"

[agents]
directory = "agents"

[director]
state_directory = "state"
# Emulated guests on a busy machine need longer than real ones; the hold still ends when it can.
lease_seconds = 40
budget_seconds = 20

[recovery]
durability = "cache"

[island]
host = "{island}"
home = "{island.partition(".")[0]}-local"
"""
    )
    temporary.rename(where.settings)


def _storage(where: Places, record: LabRecord, say: Say) -> ManagedEngine:
    create_loop_pool(where.storage, blueprint.POOL_BYTES)
    settings = load_settings(where.settings)
    create_system(settings.storage[0])
    engine = open_engine(settings)
    if not isinstance(engine, ManagedEngine):
        raise ConfigurationError(f"{where.settings} names another storage than the lab's own.")
    for line in engine.reconcile():
        say(line)
    for lun in blueprint.LUNS:
        group = record.lun_groups[lun.name]
        engine.create_group(group)
        engine.create_lun(group, lun.name, lun.size_bytes)
    marker = where.root / "volumes-made"
    if not marker.exists():
        say("building guests and VMFS volumes (minutes the first time)")
        _fill_volumes(where, record, engine)
        marker.touch()
    initiators = [host.iqn for host in blueprint.HOSTS if not host.island]
    for lun in blueprint.LUNS:
        engine.present(record.lun_groups[lun.name], lun.name, initiators)
    return engine


def _fill_volumes(where: Places, record: LabRecord, engine: ManagedEngine) -> None:
    """Format the LUNs and put the guests' disks on them; from the start if it was cut short."""
    luns = {lun.name: lun for group in engine.groups() for lun in group.luns}
    images = {
        plan.datastore: image(where.pool, record.lun_groups[plan.name], plan.name)
        for plan in blueprint.LUNS
    }
    for plan in blueprint.LUNS:
        naa = bytes.fromhex(luns[plan.name].naa.removeprefix("naa."))
        format_volume(images[plan.datastore], plan.size_bytes, plan.datastore, naa)
    for vm in blueprint.VMS:
        disks = {disk.label: disk for disk in guest_disks(vm.name)}
        for number, plan_disk in enumerate(vm.disks):
            source = disks[plan_disk.image]
            with Volume(images[plan_disk.datastore]) as volume:
                if vm.name not in volume.listdir("/"):
                    volume.mkdir(f"/{vm.name}")
                volume.create_disk(
                    f"/{vmdk_path(vm, number)}", source.size_bytes, source.path, "thick"
                )
        with Volume(images[vm.disks[0].datastore]) as volume:
            vmx = _vmx(where, vm, images)
            volume.write_file(f"/{vm.name}/{vm.name}.vmx", vmx.encode())


def vmdk_path(vm: blueprint.VmPlan, number: int) -> str:
    """Where the VM's disk lies in its datastore, named as ESX names them."""
    suffix = f"_{number}" if number else ""
    return f"{vm.name}/{vm.name}{suffix}.vmdk"


def _vmx(where: Places, vm: blueprint.VmPlan, images: Mapping[str, Path]) -> str:
    """As ESX writes it: disks beside it by their name, those elsewhere by their volume's UUID."""
    identity = uuid.UUID(instance_uuid(where.name, vm.name))
    lines = [
        '.encoding = "UTF-8"',
        'config.version = "8"',
        'virtualHW.version = "19"',
        f'displayName = "{vm.name}"',
        f'vc.uuid = "{instance_uuid(where.name, vm.name)}"',
        'guestOS = "debian12-64"',
        f'uuid.bios = "{identity.bytes[:8].hex(" ")}-{identity.bytes[8:].hex(" ")}"',
        f'memSize = "{vm.memory_mib}"',
        'numvcpus = "2"',
        'scsi0.present = "TRUE"',
        'scsi0.virtualDev = "pvscsi"',
        'ethernet0.present = "TRUE"',
        'ethernet0.virtualDev = "vmxnet3"',
        'ethernet0.networkName = "VM Network"',
        'ethernet0.addressType = "vpx"',
        f'ethernet0.generatedAddress = "00:50:56:9a:00:{identity.bytes[-1]:02x}"',
    ]
    for number, disk in enumerate(vm.disks):
        name = vmdk_path(vm, number).rsplit("/", 1)[-1]
        if disk.datastore != vm.disks[0].datastore:
            volume = _volume_uuid(images[disk.datastore])
            name = f"/vmfs/volumes/{volume}/{vmdk_path(vm, number)}"
        lines += [f'scsi0:{number}.present = "TRUE"', f'scsi0:{number}.fileName = "{name}"']
    return "\n".join(lines) + "\n"


def _volume_uuid(image_file: Path) -> str:
    """What names a volume below /vmfs/volumes."""
    with image_file.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        found = read_volume(read)
    if found is None:
        raise LabError(f"{image_file} holds no VMFS volume.")
    return found.uuid


def _vcenter(where: Places, engine: ManagedEngine) -> Control:
    where.vcenter.mkdir(exist_ok=True)
    control = Control(where.vcenter)
    if not _answers(control):
        with (where.root / "vcenter.log").open("ab") as log:
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "atoll_lab.vcenter", "--dir", str(where.vcenter)),
                    *("--user", USER),
                    *("--password-file", str(where.root / "vcenter.password")),
                    *("--guests", str(where.guests)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        _await(
            lambda: _answers(control), 60, f"The vCenter simulator; see {where.root}/vcenter.log"
        )
    _write_settings_for_port(where, control.endpoint().port)
    portals = {
        f"{portal.address}:{portal.port}"
        for presentation in engine.presentations()
        for portal in presentation.portals
    }
    for host in blueprint.HOSTS:
        for portal in () if host.island else sorted(portals):
            control.add_portal(host.name, portal)
        control.rescan(host.name)
    for vm in blueprint.VMS:
        control.add_vm(
            name=vm.name,
            datastore=vm.disks[0].datastore,
            vmx_path=f"{vm.name}/{vm.name}.vmx",
            disks=[
                NewDisk(
                    key=disk.key,
                    label=disk.label,
                    path=vmdk_path(vm, number),
                    size_bytes=next(
                        d.size_bytes for d in guest_disks(vm.name) if d.label == disk.image
                    ),
                    datastore=disk.datastore,
                )
                for number, disk in enumerate(vm.disks)
            ],
            host=vm.host,
            guest_os="debian12_64Guest",
            instance_uuid=instance_uuid(where.name, vm.name),
        )
    return control


def _answers(control: Control) -> bool:
    try:
        control.ping()
    except ControlError:
        return False
    return True


def _await(ready: Callable[[], bool], limit_seconds: float, what: str) -> None:
    deadline = time.monotonic() + limit_seconds
    while not ready():
        if time.monotonic() > deadline:
            raise LabError(f"{what} did not come up within {limit_seconds:.0f} s.")
        time.sleep(0.2)


def _repository(where: Places) -> None:
    key = where.root / "repository.key"
    if not key.exists():
        create_key_file(key)
    if not where.repository.exists():
        Repository.create(where.repository, KeyFile(key))


def _boot(
    where: Places,
    vm: blueprint.VmPlan,
    record: LabRecord,
    engine: ManagedEngine,
    control: Control,
    config_drive: Path,
) -> None:
    """Start the VM's QEMU on its host: disks over iSCSI, at their VMDK's place in VMFS."""
    presented = {item.lun: item for item in engine.presentations()}
    lun_of = {plan.datastore: plan.name for plan in blueprint.LUNS}
    iqn = next(host.iqn for host in blueprint.HOSTS if host.name == vm.host)
    disks = []
    for number, disk in enumerate(vm.disks):
        lun = lun_of[disk.datastore]
        with Volume(image(where.pool, record.lun_groups[lun], lun)) as volume:
            extents = volume.extents(f"/{vmdk_path(vm, number)}")
        if len(extents) != 1:
            raise LabError(f"Disk {disk.label} of {vm.name} is not in one piece on {lun}.")
        portal = presented[lun].portals[0]
        disks.append(
            IscsiDisk(
                portal=f"{portal.address}:{portal.port}",
                target=portal.target,
                lun=portal.lun_number,
                initiator=iqn,
                offset=extents[0].lun_offset,
                size_bytes=extents[0].length,
            )
        )
    start(
        GuestSpec(
            name=vm.name,
            memory_bytes=vm.memory_mib << 20,
            disks=tuple(disks),
            config_drive=config_drive,
            scratch=_scratch(where, vm),
            agent_port=record.agent_ports[vm.name],
        ),
        where.guests / vm.name,
    )
    control.set_power(vm.name, True)


def _enrol(where: Places, vm: blueprint.VmPlan, record: LabRecord) -> Path:
    """The guest's config drive: the tar of its enrolment, made once."""
    directory = where.guests / vm.name
    directory.mkdir(parents=True, exist_ok=True)
    drive = directory / "config.tar"
    if not drive.exists():
        enrol(
            Authority.open(where.agents),
            vm.name,
            instance_uuid(where.name, vm.name),
            drive,
            address="127.0.0.1",
            port=record.agent_ports[vm.name],
            listen_port=DEFAULT_PORT,
            applications=[vm.application],
            # As with the director's own times: emulated guests need longer than real ones.
            vmware={"prepare_seconds": 120, "budget_seconds": 40, "lease_seconds": 60},
        )
    return drive


def _scratch(where: Places, vm: blueprint.VmPlan) -> Path:
    """An empty sparse disk no backup covers, for whatever a test wants to keep inside the guest."""
    path = where.guests / vm.name / "scratch.raw"
    if not path.exists():
        with path.open("wb") as file:
            file.truncate(4 << 30)
    return path


def _await_agents(where: Places, say: Say) -> None:
    agents = open_agents(load_settings(where.settings))
    for vm in blueprint.VMS:
        agent = agents[instance_uuid(where.name, vm.name)]
        began = time.monotonic()

        def answers(agent: GuestAgent = agent) -> bool:
            try:
                agent.status()
            except AgentUnavailableError:
                return False
            return True

        log = where.guests / vm.name / "serial.log"
        _await(answers, BOOT_SECONDS, f"The agent of {vm.name} (console: {log})")
        say(f"{vm.name}: agent answers after {time.monotonic() - began:.0f} s of waiting")
