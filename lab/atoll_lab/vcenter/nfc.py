"""`/nfc/TICKET/disk-0.vmdk`: where the disks of an import are sent, and those of an export are read.

Whoever knows the ticket may do so; no session is needed, as with ESX. What comes is read by
QEMU, which has a reader of its own, and kept as a raw file in the simulator's directory
(`Control.imported_disk`). It is not written into the VMFS volume on the datastore's LUN.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pyVmomi import vim, vmodl

from atoll_lab.vcenter.objects.http_nfc_lease import HttpNfcLease
from atoll_lab.vcenter.state import DiskState

if TYPE_CHECKING:
    from atoll_lab.vcenter.site import Site

PREFIX = "/nfc/"
_TYPE = "application/x-vnd.vmware-streamVmdk"
_PART_BYTES = 1 << 20
_MAX_LINE_BYTES = 1000


class _BrokenOffError(Exception):
    """The body ended before its end, or the lease did."""


def receive(site: "Site", handler: BaseHTTPRequestHandler) -> tuple[HTTPStatus, str]:
    """Take a disk in, and say how it went. The connection is of no use after anything but OK.

    Raises DroppedConnection where a fault rule for `NfcUpload` (the whole of it) or `NfcUploadBody`
    (when its first bytes are in) says so; ConnectionError when the client went away.
    """
    ticket, _, name = handler.path.removeprefix(PREFIX).partition("/")
    lease = site.leases.get(ticket)
    if lease is None or not lease.live or lease.exports or not handler.path.startswith(PREFIX):
        return HTTPStatus.NOT_FOUND, "There is no such lease"
    disk = lease.disk(name)
    if disk is None:
        return HTTPStatus.NOT_FOUND, "The lease has no such disk"
    if handler.headers.get("Content-Type") != _TYPE:
        return HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"A disk is sent as {_TYPE}"
    target = (site.vm(lease.vm).state.name, lease.vm)
    site.faults.strike("before", "NfcUpload", target)
    directory = site.disk_directory(lease.vm)
    directory.mkdir(parents=True, exist_ok=True)
    sent = directory / f"{disk.key}.vmdk"
    try:
        with sent.open("wb") as file:
            for number, part in enumerate(_while_live(lease, _body(handler))):
                if number == 0:
                    site.faults.strike("before", "NfcUploadBody", target)
                file.write(part)
        lease.keep(disk, _decoded(sent, disk))
    except _BrokenOffError as error:
        return HTTPStatus.BAD_REQUEST, str(error)
    except vim.fault.InvalidState as fault:
        return HTTPStatus.GONE, str(fault.msg)
    except vmodl.MethodFault as fault:
        lease.fail(fault)
        return HTTPStatus.INTERNAL_SERVER_ERROR, str(fault.msg)
    finally:
        sent.unlink(missing_ok=True)
        _forget(lease, directory)
    site.faults.strike("after", "NfcUpload", target)
    return HTTPStatus.OK, ""


def give(site: "Site", handler: BaseHTTPRequestHandler) -> None:
    """Send a disk of an export as QEMU writes streams, or say that there is none.

    Raises DroppedConnection where a fault rule for `NfcDownload` says so.
    """
    ticket, _, name = handler.path.removeprefix(PREFIX).partition("/")
    lease = site.leases.get(ticket)
    disk = lease.disk(name) if lease is not None and lease.live and lease.exports else None
    if lease is None or disk is None:
        handler.send_error(HTTPStatus.NOT_FOUND, "There is no such lease or disk")
        return
    directory = site.disk_directory(lease.vm)
    site.faults.strike("before", "NfcDownload", (site.vm(lease.vm).state.name, lease.vm))
    with TemporaryDirectory(dir=directory) as scratch:
        stream = Path(scratch, "disk.vmdk")
        how = ["-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"]
        subprocess.run(["qemu-img", "convert", *how, directory / disk.image, stream], check=True)
        with stream.open("ab") as file:
            file.write(bytes(512))  # the end-of-stream marker, which QEMU leaves out
        handler.send_response(HTTPStatus.OK)
        handler.send_header("Content-Type", _TYPE)
        handler.send_header("Content-Length", str(stream.stat().st_size))
        handler.end_headers()
        with stream.open("rb") as file:
            shutil.copyfileobj(file, handler.wfile)


def _forget(lease: HttpNfcLease, directory: Path) -> None:
    """Take away what was written after the lease's own clearing."""
    if lease.state() == "error" and directory.exists():
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()


def _decoded(sent: Path, disk: DiskState) -> Path:
    """The disk as a raw file; InvalidDiskFormat for what is none of that capacity."""
    asked = subprocess.run(
        ["qemu-img", "info", "-f", "vmdk", "--output=json", sent],
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode:
        raise vim.fault.InvalidDiskFormat(msg=f"No VMDK: {asked.stderr.strip()[-200:]}")
    told = json.loads(asked.stdout)
    kind = told["format-specific"]["data"]["create-type"]
    if kind != "streamOptimized":
        raise vim.fault.InvalidDiskFormat(msg=f"A disk of the kind {kind}")
    if told["virtual-size"] != disk.size_bytes:
        raise vim.fault.InvalidDiskFormat(
            msg=f"The capacity is {told['virtual-size']} and not {disk.size_bytes}"
        )
    image = sent.with_suffix(".img")
    done = subprocess.run(
        ["qemu-img", "convert", "-f", "vmdk", "-O", "raw", sent, image],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise vim.fault.InvalidDiskFormat(msg=f"Unreadable: {done.stderr.strip()[-200:]}")
    return image


def _while_live(lease: HttpNfcLease, parts: Iterator[bytes]) -> Iterator[bytes]:
    for part in parts:
        if not lease.live:
            raise _BrokenOffError("The lease has ended")
        yield part


def _body(handler: BaseHTTPRequestHandler) -> Iterator[bytes]:
    """The body in parts, chunked or of a known length."""
    if handler.headers.get("Transfer-Encoding", "").lower() != "chunked":
        yield from _exactly(handler, int(handler.headers.get("Content-Length", "0")))
        return
    while length := _chunk_length(handler):
        yield from _exactly(handler, length)
        if handler.rfile.readline(_MAX_LINE_BYTES) != b"\r\n":
            raise _BrokenOffError("A chunk does not end where it said")
    handler.rfile.readline(_MAX_LINE_BYTES)


def _chunk_length(handler: BaseHTTPRequestHandler) -> int:
    line = handler.rfile.readline(_MAX_LINE_BYTES)
    try:
        return int(line.partition(b";")[0], 16)
    except ValueError as error:
        raise _BrokenOffError("The body broke off") from error


def _exactly(handler: BaseHTTPRequestHandler, length: int) -> Iterator[bytes]:
    while length:
        part = handler.rfile.read(min(length, _PART_BYTES))
        if not part:
            raise _BrokenOffError("The body broke off")
        yield part
        length -= len(part)
