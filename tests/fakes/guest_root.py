"""What a guest's root holds that backup software may lose."""

import os
import socket
import stat
import subprocess
from pathlib import Path

MIB = 1 << 20


def fill_guest_root(top: Path, fstab: str, odd_name: bytes) -> None:
    """Links, owners, modes, ACLs, extended attributes, holes, special files, an `odd_name` in home."""
    (top / "etc").mkdir()
    (top / "etc/fstab").write_text(fstab)
    (top / "usr/bin").mkdir(parents=True)
    (top / "usr/bin/su").write_bytes(b"#!")
    (top / "usr/bin/su").chmod(0o4755)
    # CAP_NET_RAW, as ping has it.
    os.setxattr(
        top / "usr/bin/su", "security.capability", bytes.fromhex("0100000200200000" + "00" * 12)
    )
    (top / "bin").symlink_to("usr/bin")
    (top / "absolute").symlink_to("/etc/passwd")
    os.lchown(top / "absolute", 1000, 1000)
    home = top / "home"
    (home / "sub").mkdir(parents=True)
    (home / "plain").write_bytes(b"plain" * 1000)
    os.chown(home / "plain", 1000, 1001)
    os.link(home / "plain", home / "sub/again")
    with open(os.path.join(os.fsencode(home), odd_name), "wb") as file:
        file.write(b"odd")
    with (home / "sparse").open("wb") as file:
        file.write(b"begin")
        file.seek(8 * MIB)
        file.write(b"middle")
        file.truncate(40 * MIB)
    os.setxattr(home / "plain", "user.note", b"kept")
    os.setxattr(home / "plain", "user.binary", bytes(range(256)))
    os.setxattr(home / "plain", "user.large", b"x" * 3000)
    os.setxattr(home / "sub", "trusted.note", b"of root")
    subprocess.run(["setfacl", "-m", "u:1001:rw,g:55:r", home / "plain"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:1001:rx", home / "sub"], check=True)
    os.mkfifo(home / "fifo", 0o620)
    os.mknod(home / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 70000))
    with socket.socket(socket.AF_UNIX) as channel:
        channel.bind(str(home / "sock"))
