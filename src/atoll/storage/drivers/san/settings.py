"""The driver's keys of a [[storage]] section."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_Address = Annotated[str, Field(pattern=r"^([0-9.]+|\[[0-9a-f:]+\]):[0-9]{1,5}$")]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_+][A-Za-z0-9_.+-]{0,59}$")]
_Wwpn = Annotated[
    str, Field(pattern=r"^(?i:(naa\.)?(0x)?([0-9a-f]{16}|([0-9a-f]{2}:){7}[0-9a-f]{2}))$")
]


class Settings(BaseModel):
    """`volume_group` and `pool` are LVM's names on the SAN server; the pool is Atoll's alone.

    `helper` is how the helper is started and spoken to on the SAN server, such as
    `["ssh", "root@san1", "atoll-san"]`; left out, this machine is the SAN server.
    LIO listens on `listen`, initiators use `portals`, which are the same unless
    something between them translates addresses. `fc_ports` are the WWPNs of the
    server's Fibre Channel ports in target mode; `loopback` as `fc_fabric` puts the
    kernel's own in their place, for trying out. `chunk_bytes` is what the pool
    allocates, counts as changed and takes back; it is fixed once the pool exists.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    volume_group: _Name
    pool: _Name = "atoll"
    helper: tuple[str, ...] = ()
    listen: tuple[_Address, ...] = Field(default=("127.0.0.1:3260",), min_length=1)
    portals: tuple[_Address, ...] = ()
    durability: Literal["disk", "cache"] = "disk"
    chunk_bytes: int = Field(default=64 << 10, ge=64 << 10, le=1 << 30, multiple_of=64 << 10)
    fc_ports: tuple[_Wwpn, ...] = ()
    fc_fabric: Literal["qla2xxx", "loopback"] = "qla2xxx"
    state_directory: Path | None = None
