"""`atoll repo`: make a repository and see what it holds."""

from typing import Annotated

import typer

from atoll.cli import context
from atoll.cli.output import as_json, size, table

app = typer.Typer(help="Make and look at the repository.", no_args_is_help=True)
