"""`python -m atoll_lab.vcenter`: the simulator as a process of its own."""

import argparse
import logging
import signal
import subprocess
from pathlib import Path

from atoll_lab.guests.snapshots import QemuGuests
from atoll_lab.vcenter.iscsi_fabric import IscsiFabric
from atoll_lab.vcenter.simulator import Simulator
from atoll_lab.vcenter.site import PowerHook


def main() -> None:
    """Serve until SIGTERM, SIGINT or the control socket's `shutdown`."""
    parser = argparse.ArgumentParser(prog="atoll_lab.vcenter", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="state, certificate, endpoint")
    parser.add_argument("--port", type=int, default=0, help="0: the one of last time, or any")
    parser.add_argument("--user", default="atoll@vsphere.local")
    parser.add_argument("--password-file", type=Path, required=True)
    parser.add_argument("--power-hook", help="program run as PROGRAM VM on|off")
    parser.add_argument(
        "--guests", type=Path, help="where guests run that follow VMware snapshots, one a directory"
    )
    parser.add_argument("--verbose", action="store_true")
    chosen = parser.parse_args()
    logging.basicConfig(
        level=logging.DEBUG if chosen.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    with Simulator(
        chosen.dir,
        IscsiFabric(),
        chosen.user,
        chosen.password_file.read_text().splitlines()[0],
        port=chosen.port,
        power_hook=run_hook(chosen.power_hook) if chosen.power_hook else None,
        guests=QemuGuests(chosen.guests) if chosen.guests else None,
    ) as simulator:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: simulator.stop_soon())
        simulator.wait()


def run_hook(program: str) -> PowerHook:
    """A power hook that runs a program and fails with what it printed."""

    def hook(vm: str, on: bool) -> None:
        done = subprocess.run(
            [program, vm, "on" if on else "off"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip() or f"{program} ended with {done.returncode}")

    return hook


if __name__ == "__main__":
    main()
