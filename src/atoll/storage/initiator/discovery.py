"""What a portal shows to an initiator."""

from dataclasses import dataclass

from atoll.storage.backend import Chap
from atoll.storage.initiator.errors import ScsiCommandError
from atoll.storage.initiator.library import DISCOVERY_SESSION, GOOD, library
from atoll.storage.initiator.session import Login, Session

_REPORT_BYTES = 8 + 8 * 256
_FLAT_OR_PERIPHERAL = 0x3FFF


@dataclass(frozen=True, slots=True)
class Target:
    """A target a portal shows to an initiator; `portals` are `address:port`."""

    name: str
    portals: tuple[str, ...]


def discover(
    portal: str, initiator: str, *, chap: Chap | None = None, timeout_seconds: int = 60
) -> list[Target]:
    """What the portal (`address:port`) shows this initiator, by name.

    TargetUnreachableError when nobody answers there; the errors of IscsiLun's
    opening when it asks for more than a name.
    """
    session = Session(
        Login(portal, initiator, chap=chap, timeout_seconds=timeout_seconds), DISCOVERY_SESSION
    )
    try:
        session.open_without_lun()
        return sorted(
            (Target(name, portals) for name, portals in session.discover()),
            key=lambda target: target.name,
        )
    finally:
        session.end()


def lun_numbers(
    portal: str,
    target: str,
    initiator: str,
    *,
    chap: Chap | None = None,
    timeout_seconds: int = 60,
) -> list[int]:
    """The LUNs a target shows this initiator (REPORT LUNS: SPC-4, 6.33), in its order."""
    session = Session(Login(portal, initiator, target, chap, timeout_seconds))
    try:
        session.open_without_lun()
        answer = session.finish(
            session.start(
                lambda context, then, number: library().iscsi_reportluns_task(
                    context, 0, _REPORT_BYTES, then, number
                )
            )
        )
        if answer.status != GOOD:
            raise ScsiCommandError(
                f"{session.login} failed REPORT LUNS with status {answer.status:#x}: "
                f"{session.said()}.",
                answer.sense,
            )
        end = 8 + int.from_bytes(answer.data[:4], "big")
        return [
            int.from_bytes(answer.data[at : at + 2], "big") & _FLAT_OR_PERIPHERAL
            for at in range(8, min(end, len(answer.data) - 7), 8)
        ]
    finally:
        session.end()
