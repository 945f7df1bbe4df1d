"""Every error a user can meet, each with a code, an exit status and whether trying again can help."""


class AtollError(Exception):
    """Base of all errors Atoll raises on purpose.

    The message is one sentence: what happened, to what, and what to do next.
    `code` is stable and machine-readable, `exit_status` is the command line's,
    `retryable` says whether the same call may succeed later unchanged.
    """

    code = "error"
    exit_status = 1
    retryable = False


class ConfigurationError(AtollError):
    """The settings are missing, unreadable or contradict each other."""

    code = "configuration"
    exit_status = 3


class AuthenticationError(AtollError):
    """A user name, password or certificate was refused."""

    code = "authentication"
    exit_status = 10


class VCenterUnreachableError(AtollError):
    """vCenter did not answer."""

    code = "vcenter-unreachable"
    exit_status = 11
    retryable = True


class StorageUnreachableError(AtollError):
    """A storage system did not answer, or its pool is not there."""

    code = "storage-unreachable"
    exit_status = 12
    retryable = True


class PoolFullError(AtollError):
    """The pool lacks room for what was asked; nothing was done."""

    code = "pool-full"
    exit_status = 13


class UnknownVmError(AtollError):
    """vCenter knows no VM of that name."""

    code = "unknown-vm"
    exit_status = 14


class UnprotectableVmError(AtollError):
    """The VM cannot be protected from storage snapshots, and the message says why."""

    code = "unprotectable-vm"
    exit_status = 15


class AgentUnavailableError(AtollError):
    """The guest has no agent that answers, and a crash-consistent point was not allowed."""

    code = "agent-unavailable"
    exit_status = 16
    retryable = True


class RepositoryDamagedError(AtollError):
    """Bytes of the repository are missing or not what was written."""

    code = "repository-damaged"
    exit_status = 17


class UnknownPointError(AtollError):
    """No restore point answers to that name."""

    code = "unknown-point"
    exit_status = 18


class NotFoundInPointError(AtollError):
    """The restore point holds no such disk, partition or file."""

    code = "not-found-in-point"
    exit_status = 19


class StorageConflictError(AtollError):
    """A guard refused: the LUN is presented, the name is taken by something else, and the like."""

    code = "storage-conflict"
    exit_status = 20


class UnsupportedFormatError(AtollError):
    """A volume, disk or file system is of a kind Atoll does not read, or is damaged."""

    code = "unsupported-format"
    exit_status = 21


class RepositoryKeyError(AtollError):
    """The key or passphrase does not open this repository."""

    code = "repository-key"
    exit_status = 22


class ProofFailedError(AtollError):
    """A restore test ran and the guest did not come up as it should."""

    code = "proof-failed"
    exit_status = 23


class HoldFailedError(AtollError):
    """The guests could not be held, and policy does not accept a lesser point."""

    code = "hold-failed"
    exit_status = 24
    retryable = True


class RepositoryUnreachableError(AtollError):
    """The repository's store did not answer or is not there."""

    code = "repository-unreachable"
    exit_status = 25
    retryable = True


class RunConflictError(AtollError):
    """Another run or command is in the way, and it took too long to wait for it."""

    code = "run-conflict"
    exit_status = 26
    retryable = True


class VCenterOperationError(AtollError):
    """vCenter refused an operation, or it failed or did not finish in time."""

    code = "vcenter-operation"
    exit_status = 27


class RestoreTargetError(AtollError):
    """The place restored into holds something already, is full, or cannot be written."""

    code = "restore-target"
    exit_status = 28


class MountError(AtollError):
    """The tree cannot be mounted there, or not unmounted now."""

    code = "mount"
    exit_status = 31


class PointHeldError(AtollError):
    """A restore point must stay: it is on hold, or the newest of a VM that is still there."""

    code = "point-held"
    exit_status = 32
