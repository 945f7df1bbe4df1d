"""What can go wrong in the agent, each with the status its caller sees."""


class AgentError(Exception):
    """Base of the agent's errors; the message is one sentence for the director's admin."""

    http_status = 500
    code = "error"


class BadRequestError(AgentError):
    """The request is not one of the protocol's."""

    http_status = 400
    code = "bad-request"


class ForbiddenError(AgentError):
    """The peer's certificate does not say that it is the director."""

    http_status = 403
    code = "forbidden"


class ConflictError(AgentError):
    """Another run holds this guest."""

    http_status = 409
    code = "conflict"


class BusyError(AgentError):
    """A hold is under way, and what was asked must wait for its end."""

    http_status = 503
    code = "busy"


class EnrolmentError(AgentError):
    """This guest could not be enrolled; nothing was changed."""

    code = "enrolment"


class HoldError(AgentError):
    """The guest could not be held; nothing is held any more."""

    http_status = 424
    code = "hold-failed"


class ApplicationError(AgentError):
    """An application refused or did not answer in time."""

    code = "application"


class ConfigError(AgentError):
    """The agent's configuration is missing or wrong."""

    code = "configuration"
