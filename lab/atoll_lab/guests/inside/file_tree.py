"""Makes a file tree with everything that file backup gets wrong: links, holes, odd names, ACLs."""

import os
import random
import subprocess
import sys
from pathlib import Path

NAMES = (
    "plain.txt",
    "with space",
    "日本語.txt",
    "e\u0301 combining",
    "quote'\"",
    "-dash",
    "n" * 255,
)


def make(root: Path) -> None:
    """Fill `root`, the same bytes every time."""
    rng = random.Random(42)
    documents = root / "documents"
    for folder in range(20):
        place = documents / f"department-{folder:02d}" / f"year-{2004 + folder}"
        place.mkdir(parents=True)
        for number in range(50):
            file = place / f"report-{number:03d}.txt"
            file.write_bytes(rng.randbytes(rng.randrange(0, 20_000)))
            os.chown(file, 1000 + number % 7, 100 + number % 3)
            file.chmod(0o640)
    odd = root / "odd"
    odd.mkdir()
    for name in NAMES:
        (odd / name).write_text(name)
    Path(os.fsdecode(os.fsencode(odd) + b"/bad\xff\xfeutf8")).write_text("not UTF-8")
    (odd / "empty").touch()
    (odd / "sticky").mkdir(mode=0o1777)
    os.mkfifo(odd / "fifo")
    _links(root / "links")
    _sparse(root / "sparse.bin")
    _attributes(root / "attributes")
    deep = root / "deep" / Path(*(f"level-{level}" for level in range(60)))
    deep.mkdir(parents=True)
    (deep / "bottom.txt").write_text("bottom")
    (root / "large.bin").write_bytes(rng.randbytes(32 << 20))
    old = root / "old.txt"
    old.write_text("old")
    os.utime(old, ns=(1_234_567_890_123_456_789, 1_234_567_890_987_654_321))


def _links(place: Path) -> None:
    place.mkdir()
    (place / "first").write_text("one inode, three names")
    (place / "below").mkdir()
    (place / "second").hardlink_to(place / "first")
    (place / "below" / "third").hardlink_to(place / "first")
    (place / "short").symlink_to("first")
    (place / "long").symlink_to("/" + "x" * 200)
    (place / "escape").symlink_to("../../../../etc/passwd")
    (place / "dangling").symlink_to("nowhere")


def _sparse(file: Path) -> None:
    with file.open("wb") as target:
        for offset in (0, 10 << 20, 300 << 20):
            target.seek(offset)
            target.write(b"DATA" * 4096)
        target.truncate(1 << 30)


def _attributes(place: Path) -> None:
    place.mkdir()
    tagged = place / "tagged"
    tagged.write_text("with extended attributes")
    os.setxattr(tagged, "user.small", b"value")
    os.setxattr(tagged, "user.big", b"V" * 3000)
    guarded = place / "guarded"
    guarded.write_text("with an access list")
    subprocess.run(["setfacl", "-m", "u:1001:rwx,g:55:r--", guarded], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:1001:rx", place], check=True)
    setuid = place / "setuid"
    setuid.write_text("setuid")
    setuid.chmod(0o4755)
    foreign = place / "foreign"
    foreign.write_text("ids past 16 bits")
    os.chown(foreign, 3_000_000_000, 70_000)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
