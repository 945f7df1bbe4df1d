"""A Ceph RADOS gateway, which speaks S3, in front of a cluster of one machine.

Needs Debian's radosgw besides what `atoll_lab.ceph` needs. It listens on loopback and dies with the
process that started it.
"""

import http.client
import json
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from atoll_lab.ceph import PROMPT, MiniCluster, free_port, mini_cluster
from atoll_lab.errors import LabError

GATEWAY_SETTINGS = {
    **PROMPT,
    "osd pool default pg num": "1",
    "rgw rados pool pg num min": "1",
    "rgw dns name": "127.0.0.1",
    "rgw run sync thread": "false",
    "rgw enable usage log": "false",
    "rgw enable quota threads": "false",
}
"""Small pools, and none of the threads that serve other sites."""
_PATIENCE_SECONDS = 120.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Gateway:
    """A running gateway and the keys of a user of it, who may make buckets."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1."""
        return int(self.endpoint.rpartition(":")[2])


@contextmanager
def gateway(directory: Path) -> Iterator[Gateway]:
    """A gateway on a cluster of its own under `directory`, gone afterwards.

    The thread that enters must live as long. LabError says what did not start.
    """
    with (
        mini_cluster(directory, osd_bytes=2 << 30, settings=GATEWAY_SETTINGS) as cluster,
        _running(cluster) as port,
    ):
        yield _with_user(cluster, port)


@contextmanager
def _running(cluster: MiniCluster) -> Iterator[int]:
    port = free_port()
    log = cluster.directory / "log" / "radosgw.out"
    with log.open("ab") as output:
        daemon = subprocess.Popen(
            [
                "setpriv", "--pdeathsig", "KILL", "radosgw", "--foreground", "-n", "client.admin",
                "--rgw-frontends", f"beast endpoint=127.0.0.1:{port} tcp_nodelay=1",
            ],
            env=cluster.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
        )  # fmt: skip
    try:
        _wait(daemon, port, log)
        yield port
    finally:
        daemon.kill()
        daemon.wait()


def _wait(daemon: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise LabError(f"The gateway did not start ({daemon.returncode}); see {log}.")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
        except OSError:
            time.sleep(_POLL_SECONDS)
        else:
            return
        finally:
            connection.close()


def _with_user(cluster: MiniCluster, port: int) -> Gateway:
    access, secret = secrets.token_hex(10), secrets.token_hex(20)
    answer = cluster.run(
        "radosgw-admin", "-n", "client.admin", "user", "create", "--uid", "atoll",
        "--display-name", "Atoll", "--access-key", access, "--secret-key", secret,
    )  # fmt: skip
    json.loads(answer)
    return Gateway(f"http://127.0.0.1:{port}", access, secret)
