"""What can go wrong with a lab guest."""

from atoll_lab.errors import LabError


class LabGuestError(LabError):
    """A lab guest could not be built, started, reached or stopped."""

    code = "lab-guest"


class RefusedError(LabGuestError):
    """QEMU said no to a command."""

    code = "lab-refused"
