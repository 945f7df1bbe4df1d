"""What a run wrote on its storage snapshots, read back (docs/formats/certificate.md)."""

import json
from dataclasses import dataclass
from typing import Any

from atoll.model.consistency import Consistency

FORMAT = "atoll-snapshot-certificate"
VERSION = 1


@dataclass(frozen=True, slots=True)
class CertifiedDisk:
    """A disk of a VM; `path` is `[datastore] path`, `luns` are names in the LUN group.

    `raw_lun` is the LUN of a raw device mapping, empty for other disks.
    """

    key: int
    path: str
    size_bytes: int
    group: str
    luns: tuple[str, ...]
    vmfs_uuid: str
    raw_lun: str = ""


@dataclass(frozen=True, slots=True)
class CertifiedVm:
    """A VM that the run backed up, and how far the snapshots may be trusted for it."""

    name: str
    instance_uuid: str
    guest_os: str
    vmx: str
    consistency: Consistency
    reasons: tuple[str, ...]
    disks: tuple[CertifiedDisk, ...]


@dataclass(frozen=True, slots=True)
class Certificate:
    """A run, its LUN groups, and the VMs of its job; bystanders are left out."""

    run: str
    groups: tuple[str, ...]
    vms: tuple[CertifiedVm, ...]


def read_certificate(text: str | None) -> Certificate | None:
    """What an annotation says; None when it is no certificate, or one of a later version."""
    try:
        document = json.loads(text or "")
        if document["format"] != FORMAT or document["version"] != VERSION:
            return None
        return Certificate(
            run=str(document["run"]),
            groups=tuple(map(str, document["groups"])),
            vms=tuple(_vm(vm) for vm in document["vms"] if vm["in_job"]),
        )
    except (ValueError, KeyError, TypeError):
        return None


def _vm(vm: dict[str, Any]) -> CertifiedVm:
    return CertifiedVm(
        name=str(vm["name"]),
        instance_uuid=str(vm["instance_uuid"]),
        guest_os=str(vm["guest_os"]),
        vmx=str(vm["vmx"]),
        consistency=Consistency(vm["consistency"]),
        reasons=tuple(map(str, vm["reasons"])),
        disks=tuple(
            CertifiedDisk(
                key=int(disk["key"]),
                path=str(disk["path"]),
                size_bytes=int(disk["size_bytes"]),
                group=str(disk["group"]),
                luns=tuple(map(str, disk["luns"])),
                vmfs_uuid=str(disk["vmfs_uuid"]),
                raw_lun=str(disk.get("raw_lun", "")),
            )
            for disk in vm["disks"]
        ),
    )
