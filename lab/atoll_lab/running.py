"""A lab that is up, as the demo, the tests and the benchmarks use it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from atoll.model.errors import ConfigurationError
from atoll.settings import load_settings
from atoll.storage.engine import ManagedEngine
from atoll.wiring import open_engine
from atoll_lab.guests.control import GuestShell
from atoll_lab.places import Places, places
from atoll_lab.vcenter.control import Control


@dataclass(frozen=True, slots=True)
class LabRecord:
    """What is remembered of a lab: the loopback port of each guest's agent, each LUN's group."""

    name: str
    agent_ports: dict[str, int]
    lun_groups: dict[str, str]


@dataclass(frozen=True, slots=True)
class Lab:
    """One lab: its places, storage engine, vCenter control and guests."""

    places: Places
    record: LabRecord
    engine: ManagedEngine
    control: Control

    def shell(self, vm: str) -> GuestShell:
        """The way into a guest."""
        return GuestShell(self.run_directory(vm) / "control.sock")

    def run_directory(self, vm: str) -> Path:
        """Where QEMU keeps the guest's sockets and console log."""
        return self.places.guests / vm


@contextmanager
def open_lab(name: str) -> Iterator[Lab]:
    """Work with a lab that `atoll lab up` made."""
    where = places(name)
    record = read_record(where)
    if record is None:
        raise ConfigurationError(f"There is no lab called {name}; `atoll lab up {name}` makes one.")
    settings = load_settings(where.settings)
    engine = open_engine(settings)
    if not isinstance(engine, ManagedEngine):
        raise ConfigurationError(f"{where.settings} names another storage than the lab's own.")
    yield Lab(where, record, engine, Control(where.vcenter))


def read_record(where: Places) -> LabRecord | None:
    """What the lab wrote of itself; None when it was never made."""
    try:
        raw = json.loads(where.record.read_text())
    except FileNotFoundError:
        return None
    return LabRecord(raw["name"], dict(raw["agent_ports"]), dict(raw["lun_groups"]))


def write_record(where: Places, record: LabRecord) -> None:
    """Remember the lab."""
    where.record.write_text(json.dumps(asdict(record), indent=2) + "\n")
