"""What a run may ask of the guests."""

from dataclasses import dataclass
from enum import StrEnum

from atoll.model.errors import ConfigurationError

LEASE_MARGIN_SECONDS = 3.0
"""How much longer a lease must be than the budget: a guest's lease begins when it is held, and the
others may use the whole budget and a second more to say so; the snapshot comes after that."""


class Way(StrEnum):
    """How a VM is held: by the agent in it, or by a VMware snapshot that lives for seconds."""

    DIRECT = "direct"
    VMWARE = "vmware"


@dataclass(frozen=True, slots=True)
class HoldPolicy:
    """How guests are held and for how long, in which order, and what is accepted when they cannot be.

    `ways` are tried one after the other for each VM. `lease_seconds` is when a
    guest that is held directly thaws by itself; `budget_seconds` is how long all of
    them together may take to freeze (`lease_shortfall` must not object, else
    ConfigurationError); `vmware_seconds` how long vCenter may take to
    make the VMware snapshots, which come before. With `accept_less` a guest that
    cannot be held gives a lesser point that says why, else the run fails and leaves
    nothing behind. `moves` is how often the hold is redone when a VM moved meanwhile.
    Each of `orders` names VMs (by name or instance UUID) in the order in which they
    freeze; they thaw in the reverse.
    """

    lease_seconds: float = 10.0
    budget_seconds: float = 5.0
    vmware_seconds: float = 120.0
    accept_less: bool = False
    moves: int = 2
    ways: tuple[Way, ...] = (Way.DIRECT,)
    orders: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if shortfall := lease_shortfall(self.lease_seconds, self.budget_seconds):
            raise ConfigurationError(f"Guests cannot be held: {shortfall}.")

    @property
    def holds(self) -> int:
        """How often a run may hold at the most: redone for moves, and for each next way."""
        return self.moves + len(self.ways)


def lease_shortfall(lease_seconds: float, budget_seconds: float) -> str:
    """Why a lease is too short for a budget, without a full stop; empty when it is long enough."""
    needed = budget_seconds + LEASE_MARGIN_SECONDS
    if lease_seconds >= needed:
        return ""
    return (
        f"lease_seconds is {lease_seconds:g} and budget_seconds {budget_seconds:g}, so the first "
        "guest held could thaw before the last one is held and the snapshot taken; raise "
        f"lease_seconds to {needed:g} at least, or lower budget_seconds"
    )
