"""A copy of this machine to install packages in, thrown away afterwards, with or without systemd."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from private_guest import await_that, run

from atoll.guests.debian import build_package, package_name


class Machine:
    """A root directory that looks like this machine's; what is written there stays there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._enter: list[str] = ["chroot", str(root)]

    def run(
        self, *argv: str, said: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self._enter, *argv], input=said, capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done

    def start(self, *argv: str, log: Path) -> "subprocess.Popen[bytes]":
        with log.open("wb") as stream:
            return subprocess.Popen([*self._enter, *argv], stdout=stream, stderr=stream)

    @contextlib.contextmanager
    def booted(self, *binds: tuple[Path, str]) -> Iterator[None]:
        """The same as a container under a systemd of its own, on this machine's network."""
        units = self.root / "etc/systemd/system"
        for wants in units.glob("*.wants/*"):
            wants.unlink()
        shutil.rmtree(self.root / "etc/rc2.d", ignore_errors=True)
        (self.root / "etc/fstab").write_text("")
        (self.root / "usr/sbin/policy-rc.d").unlink(missing_ok=True)
        legacy = Path("/sys/fs/cgroup/systemd").is_dir()
        console = self.root.parent / "console"
        with console.open("wb") as stream:
            process = subprocess.Popen(
                [
                    *(
                        "systemd-nspawn",
                        "-q",
                        "-D",
                        self.root,
                        # mkdtemp's names hold underscores, which no machine's name may.
                        f"--machine=atoll-{os.getpid()}",
                    ),
                    *("--register=no", "--keep-unit"),
                    *(f"--bind={source}:{target}" for source, target in binds),
                    *("--boot", "systemd.unit=multi-user.target"),
                    *(("systemd.unified_cgroup_hierarchy=0",) if legacy else ()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )
        outside = self._enter
        try:
            await_that(
                lambda: b"multi-user.target" in console.read_bytes() or process.poll() is not None,
                "systemd boots",
            )
            assert process.poll() is None, console.read_text(errors="replace")
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            [init] = [
                pid for pid in children if Path(f"/proc/{pid}/comm").read_text() == "systemd\n"
            ]
            self._enter = ["nsenter", "-t", init, "-m", "-u", "-i", "-p", "-C", "--"]
            yield
        finally:
            self._enter = outside
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def throwaway_machine() -> Iterator[Machine]:
    """This machine's files as they are, with the package beside them, and room for changes."""
    with contextlib.ExitStack() as stack:
        base = Path(tempfile.mkdtemp(prefix="atoll-package-"))
        stack.callback(shutil.rmtree, base)
        run("mount", "-t", "tmpfs", "tmpfs", base)
        stack.callback(run, "umount", "-l", base)
        for name in ("upper", "work", "root"):
            (base / name).mkdir()
        layers = f"lowerdir=/,upperdir={base}/upper,workdir={base}/work"
        run("mount", "-t", "overlay", "overlay", "-o", layers, base / "root")
        stack.callback(run, "umount", base / "root")
        (base / "root" / package_name()).write_bytes(build_package())
        yield Machine(base / "root")
