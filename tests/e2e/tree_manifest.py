"""What a file tree holds, in a form two machines can compare; runs here and, as text, in a guest.

Standard library only. Prints base64 of compressed JSON: one entry a file.
"""

import base64
import hashlib
import json
import os
import stat
import sys
import zlib

BLOCK = 4096


def content(path):
    """A digest of the blocks that hold more than zeros, so that holes may lie differently."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        at = 0
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA) // BLOCK * BLOCK
            except OSError:
                break
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            file.seek(at)
            while at < end:
                block = file.read(BLOCK)
                if not block:
                    break
                if block.strip(b"\0"):
                    digest.update(b"%d:" % at + block)
                at += BLOCK
    return digest.hexdigest()


def manifest(root):
    """Every entry below `root` by its path, as bytes written in hexadecimal."""
    root = os.fsencode(root)
    paths = [root]
    for folder, folders, files in os.walk(root):
        paths += [os.path.join(folder, name) for name in folders + files]
    names = {}
    for path in sorted(paths):
        status = os.lstat(path)
        names.setdefault(status.st_ino, path)
    entries = {}
    for path in sorted(paths):
        status = os.lstat(path)
        link, regular = stat.S_ISLNK(status.st_mode), stat.S_ISREG(status.st_mode)
        attributes = os.listxattr(path, follow_symlinks=False)
        entries[os.path.relpath(path, root).hex()] = {
            "mode": oct(status.st_mode),
            "owner": [status.st_uid, status.st_gid],
            "size": None if stat.S_ISDIR(status.st_mode) else status.st_size,
            "changed": None if link else status.st_mtime_ns,
            "target": os.readlink(path).hex() if link else None,
            "same_as": os.path.relpath(names[status.st_ino], root).hex(),
            "content": content(path) if regular else None,
            "attributes": {
                name: os.getxattr(path, name, follow_symlinks=False).hex() for name in attributes
            },
        }
    return entries


if __name__ == "__main__":
    print(base64.b64encode(zlib.compress(json.dumps(manifest(sys.argv[1])).encode())).decode())
