"""Nouns of Atoll: frozen dataclasses, protocols and errors. No I/O; imports nothing of atoll."""
