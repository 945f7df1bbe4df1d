"""What is written on a run's snapshots: whose disks they hold, and how far each may be trusted.

It goes where the snapshot goes, so that whoever recovers from the storage alone,
without this repository or vCenter, knows what to start and what to expect
(docs/formats/certificate.md).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict

from atoll.model.certificate import FORMAT, VERSION
from atoll.model.consistency import ConsistencyProof
from atoll.model.plan import Bystander, Plan, PlannedVm


def certificate(plan: Plan, proofs: Mapping[str, ConsistencyProof]) -> str:
    """The JSON document for the snapshots of a run; `proofs` are by instance UUID."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "run": plan.run,
        "groups": plan.groups,
        "vms": [
            *(_vm(vm, proofs[vm.vm.instance_uuid]) for vm in plan.vms),
            *(_bystander(bystander) for bystander in plan.bystanders),
        ],
    }
    return json.dumps(document, ensure_ascii=False)


def _vm(planned: PlannedVm, proof: ConsistencyProof) -> dict[str, object]:
    vm = planned.vm
    return {
        "name": vm.name,
        "instance_uuid": vm.instance_uuid,
        "guest_os": vm.guest_os,
        "vmx": vm.vmx_path,
        "disks": [
            {
                "key": disk.disk.key,
                "path": f"[{disk.disk.datastore}] {disk.disk.path}",
                "size_bytes": disk.disk.size_bytes,
                "group": disk.group,
                "luns": disk.luns,
                "vmfs_uuid": disk.vmfs_uuid,
                "raw_lun": disk.raw_lun,
            }
            for disk in planned.disks
        ],
        "in_job": True,
        "consistency": proof.consistency,
        "reasons": proof.reasons,
        "proof": asdict(proof),
    }


def _bystander(bystander: Bystander) -> dict[str, object]:
    return {
        "name": bystander.name,
        "instance_uuid": bystander.instance_uuid,
        "in_job": False,
        "consistency": bystander.consistency,
        "reasons": [bystander.reason],
        "proof": None,
    }
