"""`atoll agent`: enrol guests and see whether their agents answer."""

from pathlib import Path
from typing import Annotated

import typer

from atoll.cli import context
from atoll.cli.output import as_json, out, table

app = typer.Typer(help="Enrol agents and see how they are.", no_args_is_help=True)
