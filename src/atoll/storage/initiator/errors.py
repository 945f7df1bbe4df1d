"""What can go wrong between an initiator and a target."""

from atoll.model.errors import StorageUnreachableError


class IscsiError(StorageUnreachableError):
    """Base of the initiator's errors."""

    code = "iscsi"
    retryable = False


class InitiatorRefusedError(IscsiError):
    """The target is there and does not let this initiator in, or shows it no such LUN."""

    code = "iscsi-refused"


class ChapRefusedError(InitiatorRefusedError):
    """The target asks for a CHAP secret and does not accept ours, or we have none."""

    code = "iscsi-chap"


class TargetUnprovenError(IscsiError):
    """The target was to prove itself by mutual CHAP and did not; it may be somebody else's."""

    code = "iscsi-unproven"


class TargetUnreachableError(IscsiError):
    """Nobody answers at the portal, the target is not there, or the session was lost for good."""

    code = "iscsi-unreachable"
    retryable = True


class WrongLunError(IscsiError):
    """Portals that should lead to one LUN lead to several."""

    code = "iscsi-wrong-lun"


class ScsiCommandError(IscsiError):
    """The LUN answered a command with a failure; `sense` is (key, code and qualifier), if any."""

    code = "iscsi-command"

    def __init__(self, message: str, sense: tuple[int, int] = (0, 0)) -> None:
        super().__init__(message)
        self.sense = sense
