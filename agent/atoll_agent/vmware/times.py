"""How long a hold may take that VMware Tools asks for."""

from dataclasses import dataclass
from typing import Any

from atoll_agent.errors import ConfigError

_LIMITS = {
    "prepare_seconds": (0.0, 300.0),
    "budget_seconds": (0.1, 60.0),
    "lease_seconds": (1.0, 60.0),
    "dead_man_seconds": (60.0, 3600.0),
}


@dataclass(frozen=True)
class VmwareTimes:
    """Seconds. Applications flush for `prepare` while they serve, are held within
    `budget`, and let go after `lease` if VMware Tools has not asked for it.

    After `dead_man` the agent also thaws the file systems, which VMware Tools
    froze and was never told to thaw. By then nobody may still be taking the
    snapshot they were frozen for.
    """

    prepare_seconds: float = 30.0
    budget_seconds: float = 10.0
    lease_seconds: float = 30.0
    dead_man_seconds: float = 300.0

    @property
    def freeze_seconds(self) -> float:
        """After how long a freeze counts as failed, whatever was held by then."""
        return self.prepare_seconds + self.budget_seconds + 5.0

    @property
    def script_seconds(self) -> float:
        """How long the script waits before it lets VMware Tools go on without a hold."""
        return self.freeze_seconds + 10.0


def parse_times(given: Any) -> VmwareTimes:
    """The object `vmware` of agent.json; ConfigError says what is wrong with it."""
    if not isinstance(given, dict) or set(given) - set(_LIMITS):
        raise ConfigError(f"vmware must be an object with keys among {', '.join(_LIMITS)}.")
    for key, value in given.items():
        low, high = _LIMITS[key]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high:
            raise ConfigError(f"vmware: {key} must be a number from {low:g} to {high:g}.")
    return VmwareTimes(**{key: float(value) for key, value in given.items()})
