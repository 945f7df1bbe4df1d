"""Enrols this guest with a one-time token: the only time the agent connects to anybody.

The token names the director's enrolment endpoint and the fingerprint of its
certificate, so nothing is said to anyone else. That the guest knows the token's
secret, and the endpoint too, is proven as in SCRAM (RFC 5802, section 3) over
what both say: the secret itself never leaves the guest. The private key is
made here and never leaves either (docs/adr/0017-enrolment-by-token.md).

Over TLS 1.3, one JSON object a line: the endpoint's `{"atoll": 1, "nonce"}`,
the guest's `{"request", "proof"}` and the answer `{"reply", "proof"}` or
`{"error"}`. `request` and `reply` are texts of JSON, so that what is proven is
what was sent, to the byte.
"""

import base64
import binascii
import hashlib
import hmac
import json
import socket
import ssl
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll_agent import __version__
from atoll_agent.config import load_config
from atoll_agent.errors import BadRequestError, ConfigError, EnrolmentError
from atoll_agent.identity import check_identity, sweep, write_private
from atoll_agent.keys import new_key
from atoll_agent.protocol import MAX_INSTALL_BYTES, InstallRequest, parse_install

MARK = "atoll1-"
CERTIFICATE, AUTHORITY, NEXT = "agent.pem", "ca.crt", "enrol.key"

_PRODUCT_UUID = Path("/sys/class/dmi/id/product_uuid")
_SECONDS = 30.0
# id, secret, fingerprint, port, and the checksum that finds a token copied badly.
_ID, _SECRET, _PIN, _PORT, _SUM = 8, 20, 32, 2, 4


@dataclass(frozen=True)
class Token:
    """What is in a token: where to enrol, whom to trust there, and the secret to prove."""

    id: bytes
    secret: bytes
    pin: bytes
    host: str
    port: int


def parse_token(text: str) -> Token:
    """Read a token; EnrolmentError when it is not one or not whole."""
    try:
        raw = base64.b64decode(_padded(text.strip().removeprefix(MARK)), b"-_", True)
    except (binascii.Error, ValueError) as error:
        raise EnrolmentError("That is not a token; copy it again, all of it.") from error
    body, checksum = raw[:-_SUM], raw[-_SUM:]
    if hashlib.sha256(body).digest()[:_SUM] != checksum or not text.strip().startswith(MARK):
        raise EnrolmentError("The token is not whole; copy it again, all of it.")
    parts, at = [], 0
    for length in (_ID, _SECRET, _PIN, _PORT):
        parts.append(body[at : at + length])
        at += length
    name, secret, pin, port = parts
    host = body[at:].decode(errors="replace")
    return Token(name, secret, pin, host, int.from_bytes(port, "big"))


def enrol(token: Token, directory: Path, director: str | None = None) -> str:
    """Enrol and write the configuration to `directory`; returns the VM's name.

    `director` is HOST or HOST:PORT when the token's does not lead there from
    here. Repeating it with the same token, after an answer that was lost, gives
    the same guest its certificate again. Raises EnrolmentError; then
    what was there before is untouched.
    """
    host, port = _split(director, token.port) if director else (token.host, token.port)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    sweep(directory)
    # Before the token is spent: what the admin wrote may be wrong.
    _settings({"name": "-", "instance_uuid": "-", "port": 1}, directory)
    private, public = _key(directory / NEXT)
    request = json.dumps(
        {
            "token": token.id.hex(),
            "public_key": base64.b64encode(public).decode(),
            "product_uuid": product_uuid(),
            "hostname": socket.gethostname(),
            "version": __version__,
        }
    )
    answer = _exchange(host, port, token, request)
    given = _settings(answer, directory)
    certificates = _certificates(answer)
    pem = certificates.certificate.encode() + private
    try:
        check_identity(pem, certificates.authorities, given["instance_uuid"])
    except BadRequestError as error:
        raise EnrolmentError(f"The director's answer cannot be used: {error}") from error
    write_private(directory / AUTHORITY, certificates.authorities.encode())
    write_private(directory / CERTIFICATE, pem)
    # Last: from now on there is something to serve.
    write_private(directory / "agent.json", json.dumps(given, indent=2).encode() + b"\n")
    (directory / NEXT).unlink(missing_ok=True)
    return str(given["name"])


def product_uuid() -> str:
    """The VM's SMBIOS UUID as the kernel reads it; empty when it cannot be read."""
    try:
        return _PRODUCT_UUID.read_text().strip().lower()
    except OSError:
        return ""


def prove(secret: bytes, message: bytes) -> bytes:
    """The guest's proof that it knows the secret, good for this message alone."""
    client_key = _keyed(secret, b"atoll enrolment: guest")
    signature = _keyed(hashlib.sha256(client_key).digest(), message)
    return bytes(a ^ b for a, b in zip(client_key, signature, strict=True))


def is_proof(secret: bytes, message: bytes, proof: bytes) -> bool:
    """Whether the endpoint knows the secret and meant this message."""
    server_key = _keyed(secret, b"atoll enrolment: director")
    return hmac.compare_digest(_keyed(server_key, message), proof)


def _exchange(host: str, port: int, token: Token, request: str) -> Mapping[str, Any]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    # Trusted by its fingerprint, below, before anything is said.
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout=_SECONDS) as plain,
            context.wrap_socket(plain) as tls,
        ):
            shown = hashlib.sha256(tls.getpeercert(binary_form=True) or b"").digest()
            if not hmac.compare_digest(shown, token.pin):
                raise EnrolmentError(
                    f"What answers at {host}:{port} is not the director that made this token."
                )
            return _converse(tls, token, request)
    except OSError as error:
        raise EnrolmentError(
            f"The director's enrolment endpoint at {host}:{port} does not answer ({error}); see "
            "whether it listens there, or name another way with --director HOST:PORT."
        ) from error


def _converse(tls: ssl.SSLSocket, token: Token, request: str) -> Mapping[str, Any]:
    with tls.makefile("rwb") as stream:
        nonce = str(_line(stream).get("nonce", ""))
        said = (nonce + request).encode()
        ours = {"request": request, "proof": prove(token.secret, said).hex()}
        stream.write(json.dumps(ours).encode() + b"\n")
        stream.flush()
        answer = _line(stream)
    if "error" in answer:
        reason = "".join(c for c in str(answer["error"])[:500] if c.isprintable())
        raise EnrolmentError(f"The director refused: {reason}")
    reply = str(answer.get("reply", ""))
    with suppress(ValueError):
        if is_proof(token.secret, said + reply.encode(), bytes.fromhex(str(answer.get("proof")))):
            return _object(reply.encode())
    raise EnrolmentError("The answer was not the director's; ask for a new token.")


def _line(stream: Any) -> Mapping[str, Any]:
    return _object(stream.readline(2 * MAX_INSTALL_BYTES))


def _object(line: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise EnrolmentError("The director's answer cannot be read; ask again.") from error
    if not isinstance(value, dict):
        raise EnrolmentError("The director's answer cannot be read; ask again.")
    return value


def _certificates(answer: Mapping[str, Any]) -> InstallRequest:
    part = {key: answer.get(key) for key in ("certificate", "authorities")}
    try:
        return parse_install(json.dumps(part).encode())
    except BadRequestError as error:
        raise EnrolmentError(f"The director's answer cannot be used: {error}") from error


def _settings(answer: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """`agent.json`: what the director says of who and where, and all the rest as it was.

    Nothing that decides what is run in this guest comes over the network.
    """
    path = directory / "agent.json"
    try:
        before = json.loads(path.read_text())
    except FileNotFoundError:
        before = {}
    except (OSError, ValueError) as error:
        raise EnrolmentError(f"{path} cannot be read ({error}); mend or remove it.") from error
    name, uuid, port = (answer.get(key) for key in ("name", "instance_uuid", "port"))
    if not isinstance(name, str) or not isinstance(uuid, str) or not isinstance(port, int):
        raise EnrolmentError("The director's answer cannot be used; ask again.")
    given = {
        **before,
        "name": name,
        "instance_uuid": uuid,
        "port": port,
        "certificate": CERTIFICATE,
        "key": CERTIFICATE,
        "authority": AUTHORITY,
    }
    with tempfile.TemporaryDirectory() as trial:
        (Path(trial) / path.name).write_text(json.dumps(given))
        try:
            load_config(Path(trial) / path.name)
        except ConfigError as error:
            raise EnrolmentError(f"{path} could not be used: {error}") from error
    return given


def _key(path: Path) -> tuple[bytes, bytes]:
    """The key of an attempt that was cut short, or a new one, which is kept for the next."""
    try:
        lines = path.read_bytes().split(b"\n", 1)
        return lines[1], base64.b64decode(lines[0], validate=True)
    except (OSError, ValueError, IndexError):
        private, public = new_key()
        write_private(path, base64.b64encode(public) + b"\n" + private)
        return private, public


def _split(director: str, port: int) -> tuple[str, int]:
    host, colon, given = director.rpartition(":")
    if not colon or director.endswith("]") or (":" in host and not host.startswith("[")):
        host, given = director, str(port)
    if not given.isascii() or not given.isdigit() or not 0 < int(given[:6]) <= 65535:
        raise EnrolmentError(f"{director} is not HOST:PORT.")
    return host.strip("[]"), int(given)


def _padded(text: str) -> str:
    return text + "=" * (-len(text) % 4)


def _keyed(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, hashlib.sha256).digest()
