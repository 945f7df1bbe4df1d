"""A restore test of one restore point, and the evidence kept with it."""

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from atoll.model.points import Evidence
from atoll.model.progress import Progress
from atoll.nbd.exports import Export
from atoll.nbd.listening import UnixAddress
from atoll.nbd.passing import passing_socket
from atoll.nbd.server import NbdServer
from atoll.recovery.prove import prove
from atoll.recovery.sandbox import SandboxLimits
from atoll.service.site import Site


def prove_point(site: Site, reference: str, timeout_seconds: float, progress: Progress) -> Evidence:
    """Boot the point straight from the repository and keep with it what was seen.

    Its disks are served over NBD to the sandbox and never restored first. Raises
    AtollError when the test could not be made; a test that ran and failed is
    evidence too.
    """
    repository = site.repository()
    point = repository.find(reference)
    site.work_directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        exports = []
        for number, image in enumerate(point.disks, 1):
            reader = repository.open_disk(image)
            stack.callback(reader.close)
            exports.append(Export(f"disk{number}", reader, image.label))
        socket = stack.enter_context(passing_socket())
        server = stack.enter_context(NbdServer(exports, UnixAddress(socket)))
        disks = [(export.description, server.uri(export.name)) for export in exports]
        evidence = prove(
            point, disks, timeout_seconds, site.work_directory, progress, limits_of(point.vmx)
        )
        evidence = spoilt(evidence, [failure.error for failure in server.failures])
    repository.add_evidence(point.id, evidence)
    return evidence


def spoilt(evidence: Evidence, errors: Sequence[Exception]) -> Evidence:
    """The evidence, failed if the guest could not read all that it asked for.

    A database that happens not to need the lost bytes answers all the same.
    """
    if not errors:
        return evidence
    return replace(
        evidence,
        passed=False,
        summary=f"{len(errors)} reads of the restore point's disks failed, the first with: {errors[0]}",
        facts={**evidence.facts, "read_errors": len(errors)},
    )


def limits_of(vmx: str) -> SandboxLimits:
    """As much memory as the VM's own configuration gives it (`memSize`, MiB), within reason.

    A database configured for its machine does not start in a smaller one. Half
    of this machine's memory is the most a test takes.
    """
    usual = SandboxLimits()
    found = re.search(r'^memSize\s*=\s*"(\d{1,9})"', vmx, re.MULTILINE | re.IGNORECASE)
    if found is None:
        return usual
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    wanted = int(found[1]) << 20
    return replace(usual, memory_bytes=max(usual.memory_bytes // 2, min(wanted, half)))
