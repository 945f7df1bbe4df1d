"""Enrols a guest that cannot reach the director: all it needs as one tar to unpack there."""

import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from atoll.guests.authority import Authority
from atoll.guests.files import write_atomically
from atoll.guests.package import UNIT, build_agent, unit_file
from atoll.guests.registry import AgentRegistry, EnrolledAgent
from atoll.model.errors import ConfigurationError

DEFAULT_PORT = 8443
AGENT_PATH = "usr/lib/atoll/atoll-agent.pyz"


def enrol(
    authority: Authority,
    vm_name: str,
    instance_uuid: str,
    out: Path,
    *,
    address: str,
    port: int = DEFAULT_PORT,
    listen_port: int | None = None,
    applications: Sequence[Mapping[str, object]] = (),
    vmware: Mapping[str, object] | None = None,
) -> Path:
    """Write `out`, a tar to unpack over the guest's root, and enter the agent in the registry.

    The director will reach the agent at `address` and `port`; it listens on
    `listen_port`, the same unless something forwards. `applications` and
    `vmware` go into its `agent.json` as they are (docs/operations/agent.md has the keys).
    The tar holds a private key and has mode 0600. Enrolling a VM again revokes
    the certificate it had. Raises ConfigurationError, with nothing changed, when the
    agent would not take its configuration or `out` cannot be written.
    """
    agent = build_agent()
    config = {
        "name": vm_name,
        "instance_uuid": instance_uuid,
        "port": port if listen_port is None else listen_port,
        # One file, so that a renewal replaces both at once.
        "certificate": "agent.pem",
        "key": "agent.pem",
        "authority": "ca.crt",
        "applications": [dict(entry) for entry in applications],
        "vmware": dict(vmware or {}),
    }
    _have_checked(agent, config)
    with Authority.steady(authority.directory, authority.leaf_days) as steady:
        issued = steady.issue_agent(vm_name, instance_uuid)
        members = {
            "etc/atoll/agent.json": (json.dumps(config, indent=2).encode() + b"\n", 0o600),
            "etc/atoll/agent.pem": (issued.pem, 0o600),
            "etc/atoll/ca.crt": (steady.trusted, 0o644),
            AGENT_PATH: (agent, 0o755),
            f"etc/systemd/system/{UNIT}": (unit_file(), 0o644),
        }
        try:
            write_atomically(out, _tar(members), 0o600)
        except OSError as error:
            raise ConfigurationError(f"Cannot write {out}: {error.strerror}.") from error
        # After the tar: an entry without a tar would revoke an agent that still serves.
        AgentRegistry(steady.directory).put(
            EnrolledAgent(
                instance_uuid=instance_uuid,
                name=vm_name,
                address=address,
                port=port,
                fingerprint=issued.fingerprint,
                expires_at=issued.expires_at,
                authority=issued.authority,
                trusts=steady.trusted_fingerprints,
            )
        )
    return out


def _have_checked(agent: bytes, config: Mapping[str, object]) -> None:
    """Ask the very agent that will read it, before anything is issued or revoked."""
    with tempfile.TemporaryDirectory() as directory:
        program, file = Path(directory) / "agent.pyz", Path(directory) / "agent.json"
        program.write_bytes(agent)
        file.write_text(json.dumps(config))
        done = subprocess.run(
            [sys.executable, "-I", str(program), "check", "--config", str(file)],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        said = done.stderr.strip().removeprefix("atoll-agent: ")
        raise ConfigurationError(f"The agent would refuse its configuration: {said}")


def _tar(members: Mapping[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, (data, mode) in members.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), mode
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
