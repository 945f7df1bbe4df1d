"""`atoll export`: the disks of a point or a run over NBD, for as long as the command runs."""

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from atoll.cli import context
from atoll.cli.output import as_json, err, out, size, table
from atoll.model.errors import AtollError, ConfigurationError, RepositoryDamagedError
from atoll.nbd.exports import Export, ReadFailure
from atoll.nbd.listening import DEFAULT_PORT, Address, TcpAddress, TlsFiles, UnixAddress
from atoll.nbd.passing import passing_socket
from atoll.nbd.server import NbdServer
from atoll.service.exporting import vm_exports
from atoll.service.serving import serving

_WAIT_SECONDS = 3600


def export(
    reference: Annotated[
        str, typer.Argument(help="A restore point, VM@latest or VM@RUN; or a run, or latest.")
    ],
    vm: Annotated[str | None, typer.Option(help="Of a run, only this VM.")] = None,
    disk: Annotated[
        str | None, typer.Option(help="Only this disk: label, VMDK name or number.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(help="An older point or run; clients can ask what changed since then."),
    ] = None,
    socket: Annotated[
        Path | None, typer.Option(help="UNIX socket to make; in a temporary directory by default.")
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(help=f"Address and port to listen on instead, as 127.0.0.1:{DEFAULT_PORT}."),
    ] = None,
    tls: Annotated[
        Path | None,
        typer.Option(
            help="Directory with server-cert.pem, server-key.pem and ca-cert.pem: TLS, and only for "
            "clients with a certificate of that authority."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Serve the disks of a restore point or a run over NBD, read-only, until Ctrl-C.

    Those of a run come straight from its storage snapshots, which stay as long as they are served.
    """
    place = address(socket, listen, tls)
    with (
        serving(context.site(), reference, since) as vms,
        vm_exports(vms, vm, disk) as exports,
    ):
        serve(exports, place, json=json)


def address(socket: Path | None, listen: str | None, tls: Path | None) -> Address | None:
    """What the options name, None for a socket in a temporary directory; ConfigurationError."""
    if listen is None:
        if tls is not None:
            raise ConfigurationError("--tls is for --listen; a UNIX socket is this user's alone.")
        return UnixAddress(socket) if socket else None
    if socket is not None:
        raise ConfigurationError("Give either --socket or --listen, not both.")
    host, _, port = listen.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigurationError(
            f"{listen!r} is no address with a port; write it as 127.0.0.1:{DEFAULT_PORT}."
        )
    return TcpAddress(host.strip("[]"), int(port), TlsFiles.of(tls) if tls else None)


def serve(exports: Sequence[Export], place: Address | None, *, json: bool) -> None:
    """Serve these, tell their addresses, and wait for Ctrl-C or SIGTERM.

    A range that could not be read is told at once and makes the command fail in
    the end, with what failed first.
    """
    with passing_socket() as path:
        place = place or UnixAddress(path)
        with NbdServer(exports, place, on_failure=_tell) as server, suppress(KeyboardInterrupt):
            _announce(exports, server, json=json)
            while True:
                time.sleep(_WAIT_SECONDS)
        failures, count = server.failures, server.failure_count
    if failures:
        first = failures[0].error
        if isinstance(first, AtollError):
            first.add_note(f"{count} reads failed in all; this was the first.")
            raise first
        raise RepositoryDamagedError(
            f"{count} reads failed, the first of {failures[0].export} with {first!r}; run `atoll"
            " verify`."
        ) from first


def _announce(exports: Sequence[Export], server: NbdServer, *, json: bool) -> None:
    if json:
        as_json(
            [
                {
                    "name": each.name,
                    "key": each.key,
                    "description": each.description,
                    "size_bytes": each.reader.size_bytes,
                    "uri": server.uri(each.name),
                    "contexts": ["base:allocation", *(given.name for given in each.contexts)],
                }
                for each in exports
            ]
        )
    else:
        table(
            ["export", "disk", ">size", "~address"],
            [
                (each.name, each.description, size(each.reader.size_bytes), server.uri(each.name))
                for each in exports
            ],
        )
        if exports and exports[0].contexts:
            out.print(f"What changed: {exports[0].contexts[-1].name}")
        out.print("Serving until Ctrl-C.")
    sys.stdout.flush()


def _tell(failure: ReadFailure) -> None:
    err.print(
        f"unreadable: {failure.length} bytes at {failure.offset} of {failure.export}: {failure.error}",
        style="red",
        soft_wrap=True,
    )
