"""The half of the driver that runs on the SAN server, as root, with the standard library alone."""
