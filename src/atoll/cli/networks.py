"""What `--network` says about the cards of a VM that is brought back."""

from atoll.model.errors import ConfigurationError


def parse_network(text: str) -> tuple[bool, dict[str, str]]:
    """Whether cards are connected, and what takes the place of which network; ConfigurationError."""
    if text in ("none", "keep"):
        return text == "keep", {}
    mapped = {}
    for pair in text.split(","):
        old, equals, new = pair.partition("=")
        if not equals or not old.strip() or not new.strip():
            raise ConfigurationError(
                f"--network {text} is neither none nor keep nor OLD=NEW[,OLD=NEW]; nothing was done."
            )
        mapped[old.strip()] = new.strip()
    return True, mapped
