"""What a run may ask of the guests."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HoldPolicy:
    """How long guests may be held, in which order, and what is accepted when they cannot be.

    `lease_seconds` is when a guest thaws by itself; `budget_seconds` is how
    long all of them together may take to freeze. With `accept_less` a guest that
    cannot be held gives a lesser point that says why, else the run fails and leaves
    nothing behind. `moves` is how often the hold is redone when a VM moved meanwhile.
    Each of `orders` names VMs (by name or instance UUID) in the order in which they
    freeze; they thaw in the reverse.
    """

    lease_seconds: float = 10.0
    budget_seconds: float = 5.0
    accept_less: bool = False
    moves: int = 2
    orders: tuple[tuple[str, ...], ...] = ()
