"""Starts, finds and ends the QEMU processes of lab guests."""

import json
import os
import select
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from atoll_lab.guests.control import PORT_NAME, GuestShell
from atoll_lab.guests.errors import LabGuestError

QEMU = "qemu-system-x86_64"
DELTA_SUFFIX = ".delta.qcow2"
CONFIG_SERIAL = "atoll-config"
SCRATCH_SERIAL = "atoll-scratch"
MAC = "52:54:00:a7:01:01"
TOOLS_PORT = "org.qemu.guest_agent.0"
RPC_PORT = "io.atoll.rpc.0"


@dataclass(frozen=True, slots=True)
class FileDisk:
    """A raw disk in a file of this machine."""

    path: Path


@dataclass(frozen=True, slots=True)
class IscsiDisk:
    """A range of a LUN, seen by the host's initiator name: a contiguous VMDK inside a VMFS volume.

    `portal` is `address:port`; `offset` and `size_bytes` are in bytes on the LUN.
    """

    portal: str
    target: str
    lun: int
    initiator: str
    offset: int
    size_bytes: int


DiskAttachment = FileDisk | IscsiDisk


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """A guest to start. `disks` in the VM's order: the first is booted.

    `config_drive` is a tar the guest unpacks over its root at boot, `scratch` a
    disk of nobody's concern, `agent_port` a loopback port of this machine that
    leads to the guest's `guest_agent_port`. Without one it has a network that leads out if
    `connected`, else none.
    """

    name: str
    memory_bytes: int
    disks: tuple[DiskAttachment, ...]
    config_drive: Path | None = None
    scratch: Path | None = None
    agent_port: int | None = None
    guest_agent_port: int = 8443
    cpus: int = 2
    connected: bool = False


@dataclass(frozen=True, slots=True)
class RunningGuest:
    """A QEMU process that was alive when it was looked for, and the files beside it."""

    run_dir: Path
    pid: int

    @property
    def serial_log(self) -> Path:
        """What the guest wrote to its serial console since it was started."""
        return self.run_dir / "serial.log"

    @property
    def qmp_socket(self) -> Path:
        """QEMU's machine protocol."""
        return self.run_dir / "qmp.sock"

    @property
    def tools_socket(self) -> Path:
        """QEMU's guest agent, which stands for VMware Tools."""
        return self.run_dir / "tools.sock"

    @property
    def rpc_log(self) -> Path:
        """What the guest told the hypervisor by `vmware-rpctool` since it was started."""
        return self.run_dir / "rpc.log"

    @property
    def shell(self) -> GuestShell:
        """The way in."""
        return GuestShell(self.run_dir / "control.sock")


def start(spec: GuestSpec, run_dir: Path) -> RunningGuest:
    """Boot a guest that outlives this process; returns once QEMU has opened its disks.

    A guest already running in `run_dir` is returned as it is. One whose power
    was cut while it had a VMware snapshot starts from its base disks: what it
    wrote since is lost with the delta. Raises LabGuestError with QEMU's own
    words when it refuses.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    running = status(run_dir)
    if running is not None:
        return running
    if len(str(run_dir / "control.sock")) > 107:
        raise LabGuestError(
            f"{run_dir} is too long a path for a UNIX socket; choose a shorter one."
        )
    for stale in ("qemu.pid", "qmp.sock", "control.sock", "tools.sock", "serial.log", "rpc.log"):
        (run_dir / stale).unlink(missing_ok=True)
    for delta in run_dir.glob(f"*{DELTA_SUFFIX}"):
        delta.unlink()
    done = subprocess.run(
        [*command_line(spec, run_dir), "-daemonize"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        check=False,
    )
    running = status(run_dir)
    if done.returncode or running is None:
        raise LabGuestError(f"QEMU would not start {spec.name}: {done.stderr.strip()}")
    return running


def status(run_dir: Path) -> RunningGuest | None:
    """The guest of `run_dir` if it runs.

    QEMU writes the pidfile itself, and a process counts only when that very
    path is on its command line: a process number used again by somebody else is
    never mistaken for the guest.
    """
    pidfile = run_dir / "qemu.pid"
    try:
        pid = int(pidfile.read_text())
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    # A zombie has no command line left, so it does not count either.
    return RunningGuest(run_dir, pid) if os.fsencode(pidfile) in arguments else None


def stop(run_dir: Path, timeout_seconds: float = 60.0) -> bool:
    """Shut the guest down from inside: services stopped, file systems clean.

    False when it was still running after `timeout_seconds`; then it was left
    alone. True when it is off, also when it already was.
    """
    guest = status(run_dir)
    if guest is None:
        return True
    descriptor = _watch(run_dir, guest.pid)
    if descriptor is None:
        return True
    try:
        # Answered before init acts on it; the guest is gone when QEMU is.
        guest.shell.run("(sleep 0.2; /sbin/poweroff) >/dev/null 2>&1 &", timeout_seconds)
        return _ended(descriptor, timeout_seconds)
    except LabGuestError:
        return _ended(descriptor, 0)
    finally:
        os.close(descriptor)


def kill(run_dir: Path) -> None:
    """Cut the power: whatever the guest had not flushed is gone. Nothing to kill is success."""
    guest = status(run_dir)
    if guest is None:
        return
    descriptor = _watch(run_dir, guest.pid)
    if descriptor is None:
        return
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        if not _ended(descriptor, 30.0):
            raise LabGuestError(f"QEMU process {guest.pid} of {run_dir} does not die.")
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)


def command_line(spec: GuestSpec, run_dir: Path) -> list[str]:
    """QEMU's arguments. Software emulation always: /dev/kvm exists on machines where it hangs."""
    command = [
        QEMU,
        *("-name", f"lab-{spec.name}", "-pidfile", str(run_dir / "qemu.pid")),
        *("-machine", "pc,usb=off,hpet=off", "-accel", "tcg,thread=multi", "-cpu", "max"),
        *("-smp", str(spec.cpus), "-m", f"{spec.memory_bytes >> 20}M"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-no-reboot"),
        *("-qmp", f"unix:{run_dir / 'qmp.sock'},server=on,wait=off"),
        *("-chardev", f"file,id=serial,path={run_dir / 'serial.log'}", "-serial", "chardev:serial"),
        *("-chardev", f"socket,id=control,path={run_dir / 'control.sock'},server=on,wait=off"),
        *("-device", "virtio-serial-pci", "-device"),
        f"virtserialport,chardev=control,name={PORT_NAME}",
        *("-chardev", f"socket,id=tools,path={run_dir / 'tools.sock'},server=on,wait=off"),
        *("-device", f"virtserialport,chardev=tools,name={TOOLS_PORT}"),
        *("-chardev", f"file,id=rpc,path={run_dir / 'rpc.log'}"),
        *("-device", f"virtserialport,chardev=rpc,name={RPC_PORT}"),
    ]
    for number, disk in enumerate(spec.disks):
        boot = ",bootindex=1" if number == 0 else ""
        command += _drive(f"disk{number}", disk, f"{spec.name}-disk{number}"[-20:], boot)
    if spec.config_drive is not None:
        command += _drive("config", FileDisk(spec.config_drive), CONFIG_SERIAL, "", read_only=True)
    if spec.scratch is not None:
        command += _drive("scratch", FileDisk(spec.scratch), SCRATCH_SERIAL, "")
    network = "user,id=net0"
    if spec.agent_port is not None:
        network += f",hostfwd=tcp:127.0.0.1:{spec.agent_port}-10.0.2.15:{spec.guest_agent_port}"
    elif not spec.connected:
        return [*command, "-nic", "none"]
    return [
        *command,
        *("-netdev", network),
        # No option ROM: a guest never boots from the network, and loading it takes time.
        *("-device", f"virtio-net-pci,netdev=net0,mac={MAC},romfile="),
    ]


def block_node(disk: DiskAttachment, *, read_only: bool = False) -> dict[str, object]:
    """A disk as QEMU's block layer is told of it."""
    # A volatile write cache as far as the guest knows: its flushes go through to the target, and
    # what it did not flush may be lost, as on real hardware. Nothing is kept in this machine's
    # page cache, so that a storage snapshot holds all the guest was told is written.
    cache = {"direct": not read_only, "no-flush": False}
    match disk:
        case FileDisk(path):
            block: dict[str, object] = {"driver": "raw"}
            file: dict[str, object] = {"driver": "file", "filename": str(path), "cache": cache}
        case IscsiDisk():
            block = {"driver": "raw", "offset": disk.offset, "size": disk.size_bytes}
            file = {
                "driver": "iscsi",
                "transport": "tcp",
                "portal": disk.portal,
                "target": disk.target,
                "lun": disk.lun,
                "initiator-name": disk.initiator,
                "cache": cache,
            }
    return block | {"cache": cache, "file": file | {"read-only": read_only}}


def _drive(
    name: str, disk: DiskAttachment, serial: str, boot: str, read_only: bool = False
) -> list[str]:
    node = block_node(disk, read_only=read_only) | {"node-name": name, "read-only": read_only}
    return [
        *("-blockdev", json.dumps(node)),
        *("-device", f"virtio-blk-pci,drive={name},serial={serial},write-cache=on{boot}"),
    ]


def _watch(run_dir: Path, pid: int) -> int | None:
    """A pidfd of the guest; None when it has ended meanwhile."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if status(run_dir) is None:  # the number was taken by another process in between
        os.close(descriptor)
        return None
    return descriptor


def _ended(descriptor: int, timeout_seconds: float) -> bool:
    return bool(select.select([descriptor], [], [], timeout_seconds)[0])
