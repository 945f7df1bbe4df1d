"""One file an engine. Imported by atoll.wiring alone."""
