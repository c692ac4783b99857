"""``tessera deploy``: a federation of real machines."""

from __future__ import annotations

import typer

from cli.deploy_client import client
from cli.outcome import EPILOG
from cli.privacy import PlainHelp

app = typer.Typer(
    help="Run a federation of real machines: a server, and clients that hold their own data.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
)

app.command(name="client", cls=PlainHelp, epilog=EPILOG)(client)
