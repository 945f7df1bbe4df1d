"""RBD images as tgt's rbd module serves them (bs_rbd.so of the package tgt-rbd)."""

from pathlib import Path

from atoll.storage.targets.tgt.daemon import BackingStore

MODULE = Path("/usr/lib/tgt/backing-store/bs_rbd.so")

_PARAMETERS = (
    # It takes the answer of rbd_discard, how many bytes went, for an error (bs_rbd_request in
    # usr/bs_rbd.c): initiators must not be told that they could unmap.
    "thin_provisioning=0",
    # It takes the 4 MiB of an object for the physical block, and ESX wants 512 or 4096 bytes.
    "lbppbe=3",
)


def rbd_image(pool: str, image: str, conf: Path, user: str) -> BackingStore:
    """An image of a pool, opened as `client.<user>` of the cluster that `conf` describes.

    The path of `conf` has neither comma nor semicolon: they part what tgtd is told.
    """
    return BackingStore("rbd", f"{pool}/{image}", f"conf={conf};id={user}", _PARAMETERS)
