"""What images and snapshots are called in a pool."""

import re

_ID = "[0-9a-f]{32}"


def image_name(system: str, volume: str) -> str:
    """A volume's image; `system` keeps storage systems that share a pool apart."""
    return f"atoll.{system}.{volume}"


def volume_of(system: str, image: str) -> str | None:
    """The volume whose image it is; None when it is not the system's."""
    found = re.fullmatch(rf"atoll\.{re.escape(system)}\.({_ID})", image)
    return found[1] if found else None


def snapshot_name(snapshot: str) -> str:
    """A snapshot, in each of its images."""
    return f"atoll.{snapshot}"


def snapshot_of(name: str) -> str | None:
    """The snapshot that is called so; None when it is not ours."""
    found = re.fullmatch(rf"atoll\.({_ID})", name)
    return found[1] if found else None
