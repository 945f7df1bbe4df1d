"""What runs inside a guest: standard library only, shipped as one zipapp."""
