"""Reading a disk of a VM that is off as a stream-optimised VMDK, from where an export lease says."""

import http.client
import ssl
from collections.abc import Iterator

from atoll.model.errors import AuthenticationError, VCenterUnreachableError
from atoll.vsphere.nfc_connection import connection_to, path_of, require_done
from atoll.vsphere.nfc_lease import DeviceUrl
from atoll.vsphere.session import Session

_PART_BYTES = 1 << 20


def download(session: Session, source: DeviceUrl, what: str) -> Iterator[bytes]:
    """The stream in parts; `what` names the disk in messages.

    VCenterUnreachableError when the connection breaks, VCenterOperationError when it is refused,
    AuthenticationError for a wrong certificate.
    """
    connection, where = connection_to(session, source)
    try:
        connection.request("GET", path_of(source))
        response = connection.getresponse()
        require_done(response, where, what)
        while part := response.read(_PART_BYTES):
            yield part
    except ssl.SSLCertVerificationError as error:
        reason = getattr(error, "verify_message", "") or error.args[-1]
        raise AuthenticationError(
            f"The certificate of {where}, from which {what} is read, was refused: {reason}."
        ) from error
    except (OSError, http.client.HTTPException) as error:
        why = "it took too long" if isinstance(error, TimeoutError) else str(error)
        raise VCenterUnreachableError(
            f"The connection to {where} broke while {what} was read back: "
            f"{why or type(error).__name__}; see whether the host runs."
        ) from error
    finally:
        connection.close()
