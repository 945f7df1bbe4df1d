"""A whole simulator in one object: site, HTTPS endpoint, control socket."""

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from atoll_lab.blueprint import HOSTS, HostPlan
from atoll_lab.vcenter.certificate import certificate_in
from atoll_lab.vcenter.control import ENDPOINT, Endpoint
from atoll_lab.vcenter.control_server import ControlServer
from atoll_lab.vcenter.fabric import Fabric
from atoll_lab.vcenter.guest_hook import GuestHook
from atoll_lab.vcenter.server import SdkServer
from atoll_lab.vcenter.sessions import Sessions
from atoll_lab.vcenter.site import PowerHook, Site
from atoll_lab.vcenter.state import write_atomically

ADDRESS = "127.0.0.1"


class Simulator:
    """Serves from construction until `close`; everything it keeps is in `directory`.

    Started again in the same directory it has the same port, certificate,
    hosts and VMs. `port` 0 takes the port of last time, or any.
    """

    def __init__(
        self,
        directory: Path,
        fabric: Fabric,
        user: str,
        password: str,
        port: int = 0,
        hosts: Sequence[HostPlan] = HOSTS,
        power_hook: PowerHook | None = None,
        page_size: int = 100,
        guests: GuestHook | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        certificate = certificate_in(directory)
        self._stopping = threading.Event()
        self._closed = False
        self.site = Site(
            directory,
            fabric,
            Sessions(user, password),
            hosts,
            power_hook,
            page_size,
            guests=guests,
        )
        self._sdk = SdkServer(self.site, certificate, ADDRESS, port or _last_port(directory))
        self.site.direct_host = (f"{ADDRESS}:{self._sdk.port}", certificate.sha1)
        self._control = ControlServer(directory, self.site, self._stopping.set)
        self._sdk.start()
        self.endpoint = Endpoint(
            host=ADDRESS,
            port=self._sdk.port,
            ca_file=str(certificate.certificate_file),
            thumbprint=certificate.thumbprint,
            pid=os.getpid(),
        )
        # Written before the control socket answers: who was answered finds the port here.
        write_atomically(directory / ENDPOINT, json.dumps(asdict(self.endpoint), indent=1).encode())
        self._control.start()

    def wait(self) -> None:
        """Until `shutdown` is asked for over the control socket or `stop_soon` is called."""
        self._stopping.wait()

    def stop_soon(self) -> None:
        """Let `wait` return; safe in a signal handler."""
        self._stopping.set()

    def close(self) -> None:
        """Stop serving; the port is free afterwards. Closing twice is harmless."""
        if not self._closed:
            self._closed = True
            self._sdk.stop()
            self._control.stop()

    def __enter__(self) -> "Simulator":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _last_port(directory: Path) -> int:
    try:
        return int(json.loads((directory / ENDPOINT).read_text())["port"])
    except FileNotFoundError:
        return 0
