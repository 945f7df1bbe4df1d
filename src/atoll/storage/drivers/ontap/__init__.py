"""NetApp ONTAP over its REST API, by the vendor's SDK."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from atoll.model.errors import StorageConflictError
from atoll.storage.backend import Place, VolumeBackend
from atoll.storage.drivers.array import ArraySettings, proxy_of, read_secret
from atoll.storage.drivers.ontap.backend import OntapBackend
from atoll.storage.drivers.ontap.flexvols import FlexVols
from atoll.storage.drivers.ontap.igroups import Igroups
from atoll.storage.drivers.ontap.names import Names
from atoll.storage.drivers.ontap.session import Ontap, at

_STATE = Path("/var/lib/atoll")
_VERSION = (9, 11, 1)
"""The first whose REST API has all that is used here (`docs/drivers/ontap.md`)."""


class Settings(ArraySettings):
    """An SVM of an ONTAP cluster. FlexVols are made in `aggregate`.

    `host` is the cluster's management address. The password of `user` is the
    first line of `password_file`. FlexVols grow to `largest_bytes`. What is deleted
    can be recovered on the cluster for as long as that keeps it, unless
    `eradicate`.
    """

    user: str
    password_file: Path
    svm: str
    aggregate: str
    os_type: str = Field(default="vmware", pattern=r"^[a-z0-9_]+$")
    largest_bytes: int = Field(default=100 << 40, ge=1 << 30)
    eradicate: bool = False
    job_seconds: float = Field(default=600.0, ge=1)
    """How long a job of the cluster may take."""
    move_seconds: float = Field(default=86400.0, ge=1)
    """How long moving a LUN to another group may take, for the cluster copies its data."""

    @model_validator(mode="after")
    def _secret_goes_with_user(self) -> Self:
        """A CHAP user without a secret proves nothing."""
        if self.initiator_user and not self.initiator_secret_file:
            raise ValueError("initiator_user needs initiator_secret_file")
        return self


def state_directory(name: str, settings: Settings) -> Path:
    """Where the records are."""
    return settings.state_directory or _STATE / name


def create(name: str, settings: Settings) -> None:
    """See that the cluster lets us in, is new enough, and has what the settings name."""
    ontap = _ontap(settings)
    cluster = ontap.only("Cluster", "version", "say its version")
    version = tuple(
        int(at(cluster, "version", part) or 0) for part in ("generation", "major", "minor")
    )
    if version < _VERSION:
        raise StorageConflictError(
            f"ONTAP at {settings.host} is {'.'.join(map(str, version))} and this driver needs "
            f"{'.'.join(map(str, _VERSION))}; update it."
        )
    if not ontap.find("Svm", "uuid", name=settings.svm):
        raise StorageConflictError(
            f"ONTAP at {settings.host} shows no SVM {settings.svm}; correct its name, or let Atoll's "
            "user see it."
        )
    if not ontap.find("Aggregate", "uuid", name=settings.aggregate):
        raise StorageConflictError(
            f"ONTAP at {settings.host} shows no aggregate {settings.aggregate}; correct its name, or "
            "let Atoll's user read aggregates."
        )
    where = {"svm.name": settings.svm}
    services = ontap.find("IscsiService", "enabled", **where)
    interfaces = ontap.find("IpInterface", "ip.address", services="data_iscsi", **where)
    if not any(at(each, "enabled") for each in services) or not interfaces:
        raise StorageConflictError(
            f"SVM {settings.svm} serves no iSCSI, and {name} reads snapshots over iSCSI; enable the "
            "service and give it an interface that this machine reaches."
        )


def open_backend(name: str, settings: Settings, place: Place) -> VolumeBackend:
    """The SVM, cleared of what dead readers left in it."""
    ontap, names = _ontap(settings), Names(place.id)
    backend = OntapBackend(
        ontap,
        FlexVols(ontap, settings.svm, settings.aggregate, names, settings.largest_bytes),
        Igroups(ontap, settings.svm, names, place, settings.os_type),
        names,
        place,
        proxy_of(settings, place),
        aggregate=settings.aggregate,
        os_type=settings.os_type,
        eradicate=settings.eradicate,
        move_seconds=settings.move_seconds,
    )
    backend.clear()
    return backend


def _ontap(settings: Settings) -> Ontap:
    return Ontap(settings, settings.user, read_secret(settings.password_file), settings.job_seconds)
