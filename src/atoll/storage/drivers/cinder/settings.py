"""The driver's keys of a [[storage]] section, and what follows from them alone."""

import sys
from ipaddress import IPv4Address
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, IPvAnyAddress, model_validator

from atoll.storage.drivers.array import is_fibre_channel
from atoll.storage.identity import check_initiator

RBD_DRIVER = "cinder.volume.drivers.rbd.RBDDriver"
_STATE = Path("/var/lib/atoll")

Option = bool | int | float | str | list[str] | dict[str, str] | list[dict[str, str]]


class Settings(BaseModel):
    """An array behind one of Cinder's drivers, `volume_driver`, by its dotted name.

    `options` are that driver's own, as its page in Cinder's documentation has
    them; those that are secrets are the first lines of `option_files`. Volumes
    are made in `pool`, the array's first unless given, with `extra_specs` as
    their volume type's.

    `hosts` names initiators that are ports of one host. Snapshots are read over
    iSCSI by this machine's `initiator`, through `reader_driver` if
    `volume_driver` itself speaks another protocol.

    `python` is the interpreter of Cinder's environment, by default that of
    `scripts/cinder-sidecar` beside Atoll's own. Portals are for RBD alone, which
    this machine serves.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    volume_driver: str = Field(pattern=r"^[A-Za-z_][\w.]*\.[A-Za-z_]\w*$")
    options: dict[str, Option] = Field(default_factory=dict)
    option_files: dict[str, Path] = Field(default_factory=dict)
    extra_specs: dict[str, str] = Field(default_factory=dict)
    pool: str | None = None
    hosts: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    initiator: str | None = None
    reader_driver: str | None = None
    python: Path = Field(default_factory=lambda: Path(f"{sys.prefix}-cinder/bin/python"))
    state_directory: Path | None = None
    portal_addresses: tuple[IPvAnyAddress, ...] = Field(
        default=(IPv4Address("127.0.0.1"),), min_length=1
    )
    portal_ports: tuple[int, int] = (23260, 32259)

    @model_validator(mode="after")
    def _each_initiator_is_of_one_host(self) -> Self:
        """Two hosts with one port would be one to the array; to Cinder a host has one IQN at most."""
        seen: set[str] = set()
        for host, initiators in self.hosts.items():
            for initiator in initiators:
                if initiator in seen:
                    raise ValueError(f"hosts names {initiator} twice")
                seen.add(initiator)
            if sum(not is_fibre_channel(initiator) for initiator in initiators) > 1:
                raise ValueError(
                    f"hosts gives {host} more than one IQN; call the others' host apart"
                )
        return self

    @model_validator(mode="after")
    def _no_option_is_said_twice(self) -> Self:
        if both := sorted(self.options.keys() & self.option_files.keys()):
            raise ValueError(f"{both[0]} is in options and in option_files")
        return self

    @property
    def served_here(self) -> bool:
        """Whether volumes are RBD images, which a target of this machine serves."""
        return self.volume_driver == RBD_DRIVER

    def directory(self, name: str) -> Path:
        """Where the records are."""
        return self.state_directory or _STATE / name

    def proxy(self, system: str) -> str:
        """This machine's IQN; one of the storage system's own unless the settings have it."""
        return check_initiator(self.initiator or f"iqn.2026-11.org.atoll:proxy.{system}")

    def host_of(self, initiator: str) -> str | None:
        """The host that an initiator is a port of, if the settings say."""
        for host, initiators in self.hosts.items():
            if initiator in initiators:
                return host
        return None
