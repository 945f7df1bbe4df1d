"""What can go wrong with a lab guest."""

from atoll.model.errors import AtollError


class LabGuestError(AtollError):
    """A lab guest could not be built, started, reached or stopped."""

    code = "lab-guest"
