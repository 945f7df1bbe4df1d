"""`atoll agent`: enrol guests, see how their agents are, and keep their certificates fresh."""

from atoll.cli.agent.commands import app

__all__ = ["app"]
