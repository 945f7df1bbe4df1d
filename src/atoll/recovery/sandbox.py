"""A virtual machine nobody can reach: boots disks that stay untouched, and leaves nothing behind.

What the guest may do is decided by what QEMU is handed. It gets open file
descriptors and no path, no network device, no monitor and no user of this
machine's: as root's child it runs as `nobody` under seccomp, and it dies with
its parent.
"""

import fcntl
import json
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal
from urllib.parse import parse_qs, urlsplit

from atoll.model.errors import AtollError
from atoll.recovery.accelerator import Accelerator, choose_accelerator

QEMU = "qemu-system-x86_64"
WITNESS_PORT = "io.atoll.witness.0"
SECCOMP = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
UNPRIVILEGED_USER = "nobody"
TRANSLATION_BYTES = 256 << 20
OVERHEAD_BYTES = 2 << 30
TAIL_BYTES = 4096


class SandboxError(AtollError):
    """The sandbox itself could not be set up; nothing was learned about the restore point."""

    code = "sandbox"
    exit_status = 29


@dataclass(frozen=True, slots=True)
class SandboxDisk:
    """A disk to boot from. `base` is only read: a path, or `nbd+unix:///EXPORT?socket=PATH`."""

    label: str
    base: str


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """What the guest may use.

    `written_bytes` is what it may write to one disk before it meets errors. `accelerator` is
    `tcg` (software emulation), or `auto` to use KVM if a trial boot of it ends in time.
    """

    memory_bytes: int = 1 << 30
    cpus: int = 2
    written_bytes: int = 16 << 30
    accelerator: Literal["tcg", "auto"] = "tcg"


@dataclass(frozen=True, slots=True)
class Handles:
    """The descriptors QEMU inherits.

    `bases` are open files, or connected sockets where `exports` names an NBD export.
    """

    overlays: tuple[int, ...]
    bases: tuple[int, ...]
    exports: tuple[str | None, ...]
    witness: int


class Sandbox:
    """A running sandbox; made by `open_sandbox`."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        witness: socket.socket,
        serial: IO[bytes],
        complaints: IO[bytes],
        accelerator: Accelerator,
    ) -> None:
        self.witness = witness
        self.accelerator = accelerator
        self.unprivileged = os.geteuid() == 0
        self._process = process
        self._serial = serial
        self._complaints = complaints

    @property
    def pid(self) -> int:
        """QEMU's process number."""
        return self._process.pid

    def ended(self) -> bool:
        """Whether the guest turned itself off, or QEMU died."""
        return self._process.poll() is not None

    def serial_tail(self) -> str:
        """The last of what the guest wrote to its serial console."""
        return _tail(self._serial)

    def complaints(self) -> str:
        """What QEMU itself had to say."""
        return _tail(self._complaints)


@contextmanager
def open_sandbox(
    disks: Sequence[SandboxDisk], workdir: Path, limits: SandboxLimits
) -> Iterator[Sandbox]:
    """Boot `disks`, the first as the boot disk, and end it all with the block.

    Writes go to overlays in `workdir` that have no name once the guest runs.
    Enter and leave in one thread: QEMU dies with the thread that started it.
    Sandboxes of a killed owner are cleared first. Raises SandboxError.
    """
    if not disks:
        raise SandboxError("The restore point has no disk to boot; choose another point.")
    with ExitStack() as stack:
        place = stack.enter_context(_workplace(workdir))
        accelerator = choose_accelerator(limits.accelerator, [*_cage(limits), QEMU])
        overlays, bases = [], []
        for number, disk in enumerate(disks):
            overlays.append(_overlay(stack, place / f"disk{number}.qcow2", _size(disk)))
            bases.append(_open_base(stack, disk))
        ours, theirs = socket.socketpair()
        stack.enter_context(ours)
        stack.enter_context(theirs)
        serial = stack.enter_context((place / "serial.log").open("w+b"))
        complaints = stack.enter_context((place / "qemu.log").open("w+b"))
        handles = Handles(
            tuple(overlays),
            tuple(bases),
            tuple(_export(disk) for disk in disks),
            theirs.fileno(),
        )
        try:
            process = subprocess.Popen(
                [*_cage(limits), *command_line(_guest_name(place), handles, limits, accelerator)],
                stdin=subprocess.DEVNULL,
                stdout=serial,
                stderr=complaints,
                pass_fds=[*overlays, *bases, theirs.fileno()],
                start_new_session=True,
                cwd="/",
            )
        except OSError as error:
            raise SandboxError(f"Cannot start QEMU for a restore test: {error}.") from error
        stack.callback(_end, process)
        theirs.close()
        yield Sandbox(process, ours, serial, complaints, accelerator)


def command_line(
    name: str, handles: Handles, limits: SandboxLimits, accelerator: Accelerator
) -> list[str]:
    """QEMU's arguments; every resource is a descriptor of `handles`."""
    emulation = f"tcg,thread=multi,tb-size={TRANSLATION_BYTES >> 20}"
    command = [
        QEMU,
        *("-name", name, "-machine", "pc,usb=off,hpet=off"),
        *("-accel", emulation if accelerator is Accelerator.TCG else "kvm"),
        *("-cpu", "max", "-smp", str(limits.cpus), "-m", f"{limits.memory_bytes >> 20}M"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"),
        *("-no-reboot", "-nic", "none", "-monitor", "none", "-sandbox", SECCOMP),
        *("-chardev", "stdio,id=serial,signal=off", "-serial", "chardev:serial"),
        *("-chardev", f"socket,id=witness,fd={handles.witness}"),
        *("-device", "virtio-serial-pci"),
        *("-device", f"virtserialport,chardev=witness,name={WITNESS_PORT}"),
    ]
    for number, overlay in enumerate(handles.overlays):
        base, export = handles.bases[number], handles.exports[number]
        backing: dict[str, object] = {"driver": "nbd", "export": export}
        backing["server"] = {"type": "fd", "str": str(base)}
        if export is None:
            backing = {"driver": "file", "filename": f"/dev/fdset/{base}"}
            command += ["-add-fd", f"fd={base},set={base}"]
        node = {
            "driver": "qcow2",
            "node-name": f"disk{number}",
            # Nothing here is kept, so a guest's flush need not reach a disk.
            "cache": {"direct": False, "no-flush": True},
            "file": {"driver": "file", "filename": f"/dev/fdset/{overlay}"},
            "backing": {
                "driver": "raw",
                "read-only": True,
                "file": backing | {"read-only": True},
            },
        }
        boot = f"virtio-blk-pci,drive=disk{number}" + (",bootindex=1" if number == 0 else "")
        command += ["-add-fd", f"fd={overlay},set={overlay}"]
        command += ["-blockdev", json.dumps(node), "-device", boot]
    return command


def clear_stale(workdir: Path) -> list[int]:
    """End sandboxes in `workdir` whose owner was killed, and remove what they left.

    Returns the process numbers that had to be ended. A sandbox in use is not
    touched: its owner holds a lock.
    """
    ended: list[int] = []
    for place in workdir.glob("sandbox-*"):
        try:
            lock = (place / "owner").open("w")
        except FileNotFoundError:
            shutil.rmtree(place, ignore_errors=True)  # its owner was killed before it began
            continue
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            ended += _kill_all_of(place)
            shutil.rmtree(place)
    return ended


@contextmanager
def _workplace(workdir: Path) -> Iterator[Path]:
    """A directory of one sandbox, locked while its owner lives."""
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / ".lock").open("w") as gate:
        # One at a time, or another's half-made directory would look abandoned.
        fcntl.flock(gate, fcntl.LOCK_EX)
        clear_stale(workdir)
        place = Path(tempfile.mkdtemp(prefix="sandbox-", dir=workdir))
        owner = (place / "owner").open("w")
        fcntl.flock(owner, fcntl.LOCK_EX)
    try:
        yield place
    finally:
        shutil.rmtree(place)
        owner.close()


def _cage(limits: SandboxLimits) -> list[str]:
    """What starts QEMU: bounded, dies with its parent, gains nothing; root gives itself up as well."""
    memory = limits.memory_bytes + TRANSLATION_BYTES + OVERHEAD_BYTES
    cage = ["prlimit", f"--as={memory}", f"--fsize={limits.written_bytes}", "--core=0", "--"]
    cage += ["setpriv", "--pdeathsig", "KILL", "--no-new-privs"]
    if os.geteuid() == 0:
        user = pwd.getpwnam(UNPRIVILEGED_USER)
        cage += [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        cage += ["--inh-caps=-all", "--bounding-set=-all"]
    return [*cage, "--"]


def _overlay(stack: ExitStack, path: Path, size_bytes: int) -> int:
    _qemu_img("create", "-q", "-f", "qcow2", str(path), str(size_bytes))
    descriptor = os.open(path, os.O_RDWR)
    stack.callback(os.close, descriptor)
    path.unlink()
    return descriptor


def _open_base(stack: ExitStack, disk: SandboxDisk) -> int:
    try:
        if _export(disk) is not None:
            channel = stack.enter_context(socket.socket(socket.AF_UNIX))
            channel.connect(parse_qs(urlsplit(disk.base).query)["socket"][0])
            return channel.fileno()
        descriptor = os.open(disk.base, os.O_RDONLY)
    except (OSError, KeyError) as error:
        raise SandboxError(f"Cannot open {disk.label} at {disk.base}: {error}.") from error
    stack.callback(os.close, descriptor)
    return descriptor


def _export(disk: SandboxDisk) -> str | None:
    """The NBD export's name; None for a path."""
    url = urlsplit(disk.base)
    return url.path.lstrip("/") if url.scheme == "nbd+unix" else None


def _size(disk: SandboxDisk) -> int:
    found = json.loads(_qemu_img("info", "--output=json", "-f", "raw", disk.base))
    return int(found["virtual-size"])


def _qemu_img(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["qemu-img", *arguments], capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxError(f"qemu-img {arguments[0]} failed: {error}.") from error
    if done.returncode:
        raise SandboxError(f"qemu-img {arguments[0]} failed: {done.stderr.strip()}.")
    return done.stdout


def _kill_all_of(place: Path) -> list[int]:
    """Kill what runs under the sandbox's name: QEMU, or the cage that was about to become it.

    Looked for by its command line, which is there from its first instant; a
    file with its number could not be.
    """
    ended = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        pid = int(entry.parent.name)
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            # Read after the process was pinned, so the number cannot change hands in between.
            if os.fsencode(_guest_name(place)) in entry.read_bytes().split(b"\0"):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                select.select([descriptor], [], [], 10)
                ended.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
        finally:
            os.close(descriptor)
    return ended


def _guest_name(place: Path) -> str:
    return f"atoll-{place.name}"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _tail(log: IO[bytes]) -> str:
    size = os.fstat(log.fileno()).st_size
    data = os.pread(log.fileno(), TAIL_BYTES, max(0, size - TAIL_BYTES))
    return data.decode(errors="replace").replace("\r", "")
