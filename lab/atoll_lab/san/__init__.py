"""A SAN server in a QEMU guest: LVM thin provisioning and LIO under the distribution's own kernel."""
