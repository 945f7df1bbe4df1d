"""A Ceph cluster of one machine: a monitor, a manager and disks in files, for tests and benchmarks.

Needs Debian's ceph-mon, ceph-mgr, ceph-osd, ceph-common and ceph-mgr-modules-core. Everything
listens on loopback, and every daemon dies with the process that started it, however that ends.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from atoll_lab.errors import LabError

POOL = "atoll"
USER = "atoll"

_PLACEMENT_GROUPS = 8
_PATIENCE_SECONDS = 120.0
_POLL_SECONDS = 0.2
_KEYS = {
    "mon.": {"mon": "allow *"},
    "mgr.x": {"mon": "allow profile mgr", "osd": "allow *", "mds": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *"},
    # What docs/drivers/ceph.md tells an admin to give.
    f"client.{USER}": {
        "mon": "profile rbd",
        "osd": f"profile rbd pool={POOL}",
        "mgr": f"profile rbd pool={POOL}",
    },
}
PROMPT = {
    "paxos propose interval": "0.02",
    "paxos min wait": "0.005",
    "osd client watch timeout": "12",
}
"""A monitor that commits at once, where its defaults have a snapshot wait for up to a second; and
disks that forget a client that died sooner than after 30 s."""


@dataclass
class MiniCluster:
    """A running cluster with an empty pool.

    `conf` is what clients read, `keyring` holds the key of `user`, who may use
    the pool and nothing else.
    """

    directory: Path
    osds: int
    pool: str = POOL
    user: str = USER
    _daemons: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def conf(self) -> Path:
        """The cluster's settings."""
        return self.directory / "ceph.conf"

    @property
    def keyring(self) -> Path:
        """The key of `user`."""
        return self.directory / f"client.{self.user}.keyring"

    def ask(self, *command: str) -> str:
        """Run `ceph` as the cluster's admin; what it says."""
        return _run("ceph", "--connect-timeout", "60", *command, conf=self.conf)

    def rbd(self, *command: str) -> str:
        """Run `rbd` as the cluster's admin; what it says."""
        return _run("rbd", *command, conf=self.conf)

    def run(self, *command: str) -> str:
        """Run another of Ceph's programs; what it says."""
        return _run(*command, conf=self.conf)

    @property
    def environment(self) -> dict[str, str]:
        """What tells Ceph's programs of this cluster."""
        return _environment(self.conf)

    def start(self) -> None:
        """Start every daemon that `kill` ended, and wait until the pool can be used."""
        self.start_monitor()
        self.start_others()
        self.wait()

    def start_monitor(self) -> None:
        """Start what the others ask first."""
        self._spawn("ceph-mon", "a")

    def start_others(self) -> None:
        """Start the manager and the disks."""
        self._spawn("ceph-mgr", "x")
        for number in range(self.osds):
            self._spawn("ceph-osd", str(number))

    def wait(self) -> None:
        """Wait until all placement groups can be used."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self._healthy():
            for daemon in self._daemons:
                if daemon.poll() is not None:
                    raise LabError(f"{daemon.args!r} ended ({daemon.returncode}); {self._said()}")
            if time.monotonic() > deadline:
                raise LabError(
                    f"The Ceph cluster is not well after {_PATIENCE_SECONDS:g} s; {self._said()}"
                )
            time.sleep(_POLL_SECONDS)

    def kill(self) -> None:
        """End every daemon as a loss of power would: SIGKILL, all at once."""
        for daemon in self._daemons:
            daemon.send_signal(signal.SIGKILL)
        for daemon in self._daemons:
            daemon.wait()
        self._daemons.clear()

    def _spawn(self, program: str, name: str) -> None:
        log = self.directory / "log" / f"{program}.{name}.out"
        with log.open("ab") as output:
            self._daemons.append(
                subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", program, "-i", name, "--foreground"],
                    env=_environment(self.conf),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                )
            )

    def _healthy(self) -> bool:
        try:
            status = json.loads(self.ask("status", "--format", "json"))
        except LabError:
            return False
        groups = status["pgmap"]
        clean = sum(
            state["count"]
            for state in groups.get("pgs_by_state", ())
            if state["state_name"].startswith("active+clean")
        )
        up = status["osdmap"]["num_up_osds"] == self.osds
        manager = status["mgrmap"]["available"]
        return bool(up and manager and clean == groups["num_pgs"])

    def _said(self) -> str:
        return f"see {self.directory / 'log'}."


@contextmanager
def mini_cluster(
    directory: Path,
    *,
    osds: int = 1,
    osd_bytes: int = 8 << 30,
    settings: Mapping[str, str] = PROMPT,
) -> Iterator[MiniCluster]:
    """A cluster with its data in sparse files under `directory`, gone afterwards.

    `settings` join the cluster's `[global]` section. The thread that enters must
    live as long as the cluster. LabError says which daemon did not start.
    """
    directory.mkdir(parents=True, exist_ok=True)
    cluster = MiniCluster(directory, osds)
    try:
        _prepare(cluster, osd_bytes, settings)
        cluster.start_monitor()
        _make_disks(cluster)
        cluster.start_others()
        _make_pool(cluster)
        cluster.wait()
        yield cluster
    finally:
        cluster.kill()
        for part in ("mon", "mgr", "run", "log", *(f"osd{number}" for number in range(osds))):
            shutil.rmtree(directory / part, ignore_errors=True)
        for file in (cluster.conf, cluster.keyring, directory / "keyring", directory / "monmap"):
            file.unlink(missing_ok=True)


def _prepare(cluster: MiniCluster, osd_bytes: int, settings: Mapping[str, str]) -> None:
    directory, fsid = cluster.directory, str(uuid4())
    for part in ("mon", "mgr", "run", "log"):
        (directory / part).mkdir()
    address = f"127.0.0.1:{free_port()}"
    lines = {
        "fsid": fsid,
        "mon host": f"[v2:{address}]",
        "mon initial members": "a",
        "public network": "127.0.0.0/8",
        "ms bind msgr1": "false",
        "keyring": str(directory / "keyring"),
        "auth allow insecure global id reclaim": "false",
        "run dir": str(directory / "run"),
        # A socket's path ends at 107 bytes, and nobody asks here.
        "admin socket": "",
        "log file": f"{directory}/log/$name.log",
        "pid file": "",
        "mon data": str(directory / "mon"),
        "mgr data": str(directory / "mgr"),
        "osd data": f"{directory}/osd$id",
        "osd objectstore": "bluestore",
        "bluestore block size": str(osd_bytes),
        "bluestore cache autotune": "false",
        "bluestore cache size": str(64 << 20),
        "osd pool default size": str(min(cluster.osds, 2)),
        "osd pool default min size": "1",
        "osd pool default pg autoscale mode": "off",
        "osd crush chooseleaf type": "0",
        "mon allow pool size one": "true",
        "mon warn on pool no redundancy": "false",
        "mon data avail warn": "1",
        "mon data avail crit": "0",
        **settings,
    }
    cluster.conf.write_text(
        "[global]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items())
    )
    keys = {
        **_KEYS,
        **{
            f"osd.{number}": {
                "mon": "allow profile osd",
                "mgr": "allow profile osd",
                "osd": "allow *",
            }
            for number in range(cluster.osds)
        },
    }
    keyring = directory / "keyring"
    keyring.touch(mode=0o600)
    for name, caps in keys.items():
        arguments = [each for who, cap in caps.items() for each in ("--cap", who, cap)]
        _run("ceph-authtool", str(keyring), "--gen-key", "-n", name, *arguments, conf=cluster.conf)
    cluster.keyring.touch(mode=0o600)
    key = _run("ceph-authtool", str(keyring), "-p", "-n", f"client.{USER}", conf=cluster.conf)
    cluster.keyring.write_text(f"[client.{USER}]\n\tkey = {key.strip()}\n")
    monmap = str(directory / "monmap")
    _run(
        "monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", f"[v2:{address}]",
        monmap, conf=cluster.conf,
    )  # fmt: skip
    _run(
        "ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", str(keyring),
        conf=cluster.conf,
    )  # fmt: skip


def _make_disks(cluster: MiniCluster) -> None:
    for number in range(cluster.osds):
        (cluster.directory / f"osd{number}").mkdir()
        uuid = str(uuid4())
        cluster.ask("osd", "new", uuid, str(number))
        _run(
            "ceph-osd", "-i", str(number), "--mkfs", "--osd-uuid", uuid, conf=cluster.conf
        )  # fmt: skip


def _make_pool(cluster: MiniCluster) -> None:
    groups = str(_PLACEMENT_GROUPS)
    cluster.ask("osd", "pool", "create", cluster.pool, groups, groups)
    cluster.ask("osd", "pool", "application", "enable", cluster.pool, "rbd")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _environment(conf: Path) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "CEPH_CONF": str(conf)}


def _run(*command: str, conf: Path) -> str:
    done = subprocess.run(
        command, env=_environment(conf), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise LabError(f"{' '.join(command[:4])} failed: {done.stderr.strip() or done.returncode}.")
    return done.stdout
