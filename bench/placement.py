"""What it costs to ask vCenter where VMs are, with and without following it.

`python -m bench.placement`: against the simulator, so that only what goes over
the wire counts. Bytes are those of SOAP bodies, both ways.
"""

import secrets
import tempfile
import uuid
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from atoll.vsphere.client import VCenter, VCenterSettings
from atoll_lab.blueprint import HOSTS
from atoll_lab.vcenter import server
from atoll_lab.vcenter.iscsi_fabric import IscsiFabric
from atoll_lab.vcenter.simulator import Simulator
from atoll_lab.vcenter.state import DiskState, VmState

VMS = 2000
DISKS = 4
_USER = "bench@vsphere.local"


class Wire:
    """Counts calls and bytes at the simulator's door."""

    def __init__(self) -> None:
        self._answer = server._answer
        self.calls = 0
        self.bytes = 0

    def __call__(self, site: Any, session: Any, action: str, body: bytes) -> tuple[int, bytes]:
        status, answer = self._answer(site, session, action, body)
        self.calls += 1
        self.bytes += len(body) + len(answer)
        return status, answer

    def cost(self, work: Callable[[], object]) -> tuple[int, int]:
        """Calls and bytes of one piece of work."""
        calls, total = self.calls, self.bytes
        work()
        return self.calls - calls, self.bytes - total


def main() -> None:
    """Print a table in Markdown."""
    wire = Wire()
    with (
        patch.object(server, "_answer", wire),
        tempfile.TemporaryDirectory() as place,
        _farm(Path(place)) as (settings, uuids),
        VCenter.connect(settings) as vcenter,
    ):
        print(f"{VMS:,} VMs with {DISKS} disks each\n")
        print("| What | Following | Calls | Bytes |\n|---|---|---|---|")
        _row("inventory", "no", *wire.cost(vcenter.inventory))
        _placements(wire, vcenter, uuids, "no")
        following = vcenter.follow()
        _row("beginning to follow", "", *wire.cost(following.__enter__))
        _row("inventory", "yes", *wire.cost(vcenter.inventory))
        _placements(wire, vcenter, uuids, "yes")
        following.__exit__(None, None, None)


def _placements(wire: Wire, vcenter: VCenter, uuids: Sequence[str], following: str) -> None:
    for count in (1, 100):
        what = f"placement of {count} VM{'s' if count > 1 else ''}"
        _row(what, following, *wire.cost(partial(vcenter.placement, uuids[:count])))


def _row(what: str, following: str, calls: int, size: int) -> None:
    print(f"| {what} | {following} | {calls} | {size:,} |")


@contextmanager
def _farm(place: Path) -> Any:
    password = secrets.token_urlsafe()
    with Simulator(place / "vcenter", IscsiFabric(), _USER, password) as simulator:
        site = simulator.site
        host, store = site.host_named(HOSTS[0].name), site.datastore_named("esx1-local")
        uuids = [str(uuid.UUID(int=number)) for number in range(1, VMS + 1)]
        with site.change():
            for each in uuids:
                disks = [
                    DiskState(
                        2000 + n, f"Hard disk {n + 1}", f"{each}/{n}.vmdk", 1 << 30, store.moid
                    )
                    for n in range(DISKS)
                ]
                site.add_vm(
                    VmState(
                        moid=site.new_id("vm"),
                        name=f"vm-{each[-4:]}",
                        instance_uuid=each,
                        bios_uuid=each,
                        host=host.moid,
                        datastore=store.moid,
                        vmx_path=f"{each}/{each}.vmx",
                        guest_os="Debian GNU/Linux 12 (64-bit)",
                        disks=disks,
                        powered_on=True,
                    )
                )
        yield (
            VCenterSettings(
                host=simulator.endpoint.host,
                port=simulator.endpoint.port,
                user=_USER,
                password=password,
                ca_file=Path(simulator.endpoint.ca_file),
            ),
            uuids,
        )


if __name__ == "__main__":
    main()
