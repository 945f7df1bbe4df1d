"""What can go wrong between an initiator and a target."""

from atoll.model.errors import AtollError


class IscsiError(AtollError):
    """Base of the initiator's errors."""

    code = "iscsi"


class InitiatorRefusedError(IscsiError):
    """The target is there and does not let this initiator in, or shows it no such LUN."""

    code = "iscsi-refused"


class TargetUnreachableError(IscsiError):
    """Nobody answers at the portal, the target is not there, or the session was lost for good."""

    code = "iscsi-unreachable"
    retryable = True


class ScsiCommandError(IscsiError):
    """The LUN answered a command with a failure."""

    code = "iscsi-command"
