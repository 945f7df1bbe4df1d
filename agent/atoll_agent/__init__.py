"""What runs inside a guest: standard library only, shipped as one zipapp."""

__version__ = "0.1.0"
