"""Sending a disk to where a lease says, as a stream whose length nobody knows beforehand.

A disk is sent by POST (PUT is for files that are no disks) as stream-optimised VMDK, chunked, as
VMware's own samples for OVF imports do.
"""

import http.client
import ssl
from collections.abc import Iterable
from contextlib import suppress

from atoll.model.errors import (
    AuthenticationError,
    VCenterUnreachableError,
)
from atoll.vsphere.nfc_connection import connection_to, path_of, require_done
from atoll.vsphere.nfc_lease import DeviceUrl
from atoll.vsphere.session import Session

_TYPE = "application/x-vnd.vmware-streamVmdk"


def upload(session: Session, target: DeviceUrl, parts: Iterable[bytes], what: str) -> None:
    """Send a disk; `what` names it in messages.

    VCenterUnreachableError when the connection breaks, VCenterOperationError when the disk is
    refused, AuthenticationError for a wrong certificate. What `parts` raises passes.
    """
    connection, where = connection_to(session, target)
    headers = {"Content-Type": _TYPE, "Transfer-Encoding": "chunked"}
    try:
        try:
            connection.request("POST", path_of(target), _Sent(parts), headers, encode_chunked=True)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            # Whoever refuses a disk may say so and hang up before the end.
            with suppress(OSError, http.client.HTTPException):
                require_done(connection.getresponse(), where, what)
            raise
        require_done(connection.getresponse(), where, what)
    except ssl.SSLCertVerificationError as error:
        reason = getattr(error, "verify_message", "") or error.args[-1]
        raise AuthenticationError(
            f"The certificate of {where}, to which {what} is sent, was refused: {reason}."
        ) from error
    except _SourceFailedError as failed:
        raise failed.reason from failed.reason.__cause__
    except (OSError, http.client.HTTPException) as error:
        why = "it took too long" if isinstance(error, TimeoutError) else str(error)
        raise VCenterUnreachableError(
            f"The connection to {where} broke while {what} was sent: {why or type(error).__name__}; "
            "see whether the host runs, and restore again."
        ) from error
    finally:
        connection.close()


class _SourceFailedError(Exception):
    """Reading what was to be sent failed, which must not look like a broken connection."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _Sent:
    """The parts, so that an OSError of theirs is known for one."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = iter(parts)

    def __iter__(self) -> "_Sent":
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._parts)
        except OSError as error:
            raise _SourceFailedError(error) from error
