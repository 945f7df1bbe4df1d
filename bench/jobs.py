"""Twenty backup jobs at once, of eight kinds of software, over and over until they are stopped.

They read a run as backup software does: files and images from a mounted tree, disks over NBD, and
whole VMs by `vcbMounter`. What they write goes to memory, because a farm's backups go to another
machine.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.elsewhere import Elsewhere

VCB_MOUNTER = "vcbMounter -h none -u none -p none -L 0 -a name:$VM -r $OUT/export -t fullvm"
_RESTIC = (
    "[ -d $OUT/repo ] || restic -q -r $OUT/repo init; "
    "exec restic -q -r $OUT/repo --no-cache backup --force $TREE/$VM/files"
)
_BORG = (
    "[ -d $OUT/repo ] || borg init -e none $OUT/repo; exec borg create --sparse "
    "--files-cache disabled $OUT/repo::$(date +%s.%N) $TREE/$VM/files"
)
_RSYNC = "rm -rf $OUT/copy; exec rsync -aHAXS --numeric-ids $TREE/$VM/files/ $OUT/copy/"
_TAR = (
    "exec tar --sparse --acls --xattrs --numeric-owner -C $TREE/$VM/files -cf $OUT/$VM.tar "
    "--ignore-failed-read ."
)
_CONVERT = "exec qemu-img convert -O qcow2 $TREE/$VM/image/$VM.vmdk $OUT/disk.qcow2"
_DD = "exec dd if=$TREE/$VM/image/raw/disk{}.img of=/dev/null bs=1M iflag=nocache status=none"
_NBDCOPY = "exec nbdcopy 'nbd+unix:///'$VM'/disk{}?socket='$NBD null:"
_NBD_CONVERT = (
    "exec qemu-img convert -f raw -O qcow2 'nbd+unix:///'$VM'/disk3?socket='$NBD $OUT/disk.qcow2"
)
_EVICT_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Source:
    """Where jobs read: a mounted tree, the socket of an NBD server, and how a whole VM is exported."""

    tree: Path
    socket: Path
    export: str = VCB_MOUNTER


def twenty(export: str) -> dict[str, tuple[str, str]]:
    """The jobs by name: their VM, and the shell's words that do one round of it."""
    whole = f"rm -rf $OUT/export; exec {export}"
    each = {
        "restic": _RESTIC,
        "borg": _BORG,
        "rsync": _RSYNC,
        "tar": _TAR,
        "qemu-img": _CONVERT,
        "dd-1": _DD.format(1),
        "nbdcopy-1": _NBDCOPY.format(1),
        "vcbMounter": whole,
    }
    db1 = {
        "dd-2": _DD.format(2),
        "dd-3": _DD.format(3),
        "nbdcopy-2": _NBDCOPY.format(2),
        "qemu-img-nbd": _NBD_CONVERT,
    }
    return {
        **{f"{name}-{vm}": (vm, words) for vm in ("db1", "app1") for name, words in each.items()},
        **{f"{name}-db1": ("db1", words) for name, words in db1.items()},
    }


class Jobs:
    """The jobs while they run: from entering to `stop`, at the latest to leaving."""

    def __init__(self, source: Source, settings: Path, elsewhere: Elsewhere) -> None:
        self._elsewhere = elsewhere
        self._jobs = twenty(source.export)
        self._environment = {
            **os.environ,
            "ATOLL_CONFIG": str(settings),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TREE": str(source.tree),
            "NBD": str(source.socket),
            "RESTIC_PASSWORD": "bench",
        }
        self._directory = tempfile.TemporaryDirectory(prefix="atoll-bench-", dir="/dev/shm")
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._read_before = 0
        self.rounds: dict[str, int] = dict.fromkeys(self._jobs, 0)
        self.failures: dict[str, str] = {}
        self.read_bytes = 0
        """What the jobs had read when they were stopped, holes too; without what came over NBD."""

    def __len__(self) -> int:
        return len(self._jobs)

    def __enter__(self) -> "Jobs":
        self._read_before = _read_by("self")
        for name in self._jobs:
            thread = threading.Thread(target=self._run, args=(name,), name=name)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._directory.cleanup()

    def stop(self) -> None:
        """End all of them, wherever they are. RuntimeError when one had failed before."""
        if not self._threads:
            return
        self._stopping.set()
        with self._lock:
            running = list(self._running.values())
        # Of processes that have ended this one knows, as they were its children.
        ended = _read_by("self") - self._read_before
        self.read_bytes = ended + sum(_read_by_session(each.pid) for each in running)
        for each in running:
            with suppress(ProcessLookupError):
                os.killpg(each.pid, signal.SIGKILL)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        if self.failures:
            raise RuntimeError(f"jobs failed: {self.failures}")

    def _run(self, name: str) -> None:
        vm, words = self._jobs[name]
        out = Path(self._directory.name) / name
        out.mkdir()
        environment = {
            **self._environment,
            "VM": vm,
            "OUT": str(out),
            "HOME": str(out),
            "BORG_BASE_DIR": str(out / "borg"),
        }
        while not self._stopping.is_set():
            with (out / "said").open("wb") as said:
                process = subprocess.Popen(
                    self._elsewhere.command("sh", "-euc", words),
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    env=environment,
                    start_new_session=True,
                )
            with self._lock:
                self._running[name] = process
            if self._stopping.is_set():
                # It may have begun after `stop` looked.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
            with self._lock:
                del self._running[name]
            if self._stopping.is_set():
                return
            if status:
                words_said = (out / "said").read_bytes().decode(errors="replace").strip()
                self.failures[name] = f"status {status}: {words_said[-300:]}"
                return
            self.rounds[name] += 1


class ColdCaches:
    """Empties the page cache of files every few seconds, so that reading them is reading the disk.

    A farm's disks are larger than any memory; the lab's would be read once and then never again.
    What is not yet written stays.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = tuple(files)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cold-caches")

    def __enter__(self) -> "ColdCaches":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            for path in self._files:
                with suppress(OSError):
                    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                    os.close(descriptor)
            if self._stopping.wait(_EVICT_SECONDS):
                return


def read_by(pid: int) -> int:
    """Bytes that a process and its ended children have read, from wherever; 0 when it is gone."""
    return _read_by(str(pid))


def await_serving(
    process: subprocess.Popen[bytes], ready: Callable[[], bool], seconds: float = 120.0
) -> None:
    """Wait until a server is ready; RuntimeError when it ends or takes too long."""
    deadline = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} did not begin to serve")
        time.sleep(0.1)


def _read_by(process: str) -> int:
    try:
        text = Path(f"/proc/{process}/io").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(_fields(text)["rchar"])


def _fields(text: str) -> Mapping[str, str]:
    return dict(line.split(": ", 1) for line in text.splitlines())


def _read_by_session(session: int) -> int:
    total = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(ProcessLookupError, FileNotFoundError):
                if os.getsid(int(entry.name)) == session:
                    total += _read_by(entry.name)
    return total
