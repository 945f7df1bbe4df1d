"""What a lab itself can fail with."""

from atoll.model.errors import AtollError


class LabError(AtollError):
    """A part of the lab did not start or stop; the message names it and its log."""

    code = "lab"
    exit_status = 30
