"""Any read-only tree as a file system of this machine's kernel, over FUSE."""
