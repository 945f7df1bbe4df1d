"""`python -m bench.recovery_image`: an ext4 image with a million files, built once into the user's cache.

70,000 directories in three levels, of 2 to 60 names each, and one of 40,000; names as people, packages
and programs give them. Files are empty or small, for it is their metadata that is measured.
"""

import os
import random
import subprocess
import tempfile
from pathlib import Path

from bench.report import say

CACHE = Path.home() / ".cache" / "atoll-bench"
FILES = 1_000_000
_IMAGE_BYTES = 6 << 30
_WORDS = (
    *("report", "invoice", "config", "module", "index", "main", "test", "data", "image", "photo"),
    *("backup", "draft", "final", "notes", "session", "cache", "table", "user", "service"),
    *("handler", "model", "view", "export", "import", "summary", "budget", "plan"),
)
_ENDINGS = (".txt", ".py", ".c", ".h", ".jpg", ".json", ".pdf", ".log", ".so", "", ".html", ".xlsx")
_LARGE = 40_000


def million() -> Path:
    """The image, which is built where it is not there."""
    image = CACHE / f"million-{FILES}.ext4"
    if not image.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        say(f"building {image}, which takes some minutes")
        _build(image)
    return image


def _build(image: Path) -> None:
    new = image.with_suffix(".new")
    with new.open("wb") as file:
        file.truncate(_IMAGE_BYTES)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-N", str(FILES * 5 // 4), new], check=True)
    with tempfile.TemporaryDirectory() as mounted:
        subprocess.run(["mount", "-o", "loop", new, mounted], check=True)
        try:
            _fill(Path(mounted))
        finally:
            subprocess.run(["umount", mounted], check=True)
    new.rename(image)


def _fill(top: Path) -> None:
    rnd = random.Random(36)
    made = 0

    def add(place: str, count: int) -> None:
        nonlocal made
        os.mkdir(place)  # noqa: PTH102 - a million of them
        made += 1
        for number in range(count):
            name = f"{rnd.choice(_WORDS)}_{rnd.choice(_WORDS)}-{number}{rnd.choice(_ENDINGS)}"
            path = f"{place}/{name}"
            if rnd.random() < 0.02:
                os.symlink(f"../{name}", path)  # noqa: PTH211
            else:
                os.mknod(path, 0o100644)
            made += 1

    add(f"{top}/mail", _LARGE)
    number = 0
    while made < FILES:
        first = f"{top}/{rnd.choice(_WORDS)}{number}"
        add(first, rnd.randrange(2, 30))
        for second in range(rnd.randrange(4, 24)):
            place = f"{first}/{rnd.choice(_WORDS)}-{second}"
            add(place, min(rnd.randrange(2, 30), max(FILES - made - 1, 0)))
            for third in range(rnd.randrange(0, 4)):
                if made < FILES:
                    count = min(rnd.randrange(2, 30), max(FILES - made - 1, 0))
                    add(f"{place}/{rnd.choice(_WORDS)}.{third}", count)
        number += 1


if __name__ == "__main__":
    million()
