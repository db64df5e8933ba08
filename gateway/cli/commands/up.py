"""`csm up`."""

from __future__ import annotations

from typing import Any

import click

from gateway.cli import state
from gateway.cli.execution import Options, execute
from gateway.cli.options import HELP, model
from gateway.cli.ports import DEFAULT_PORT, consecutive_ports, free_ports
from gateway.cli.terminal import PlainConsole
from gateway.cli.up import Plan, up


@click.command("up", context_settings=HELP)
@model
@click.option(
    "--port",
    type=int,
    metavar="PORT",
    help=f"Of the gateway; the stages take the next four, and the page the one after (default {DEFAULT_PORT}).",
)
@click.option("--ephemeral", is_flag=True, help="Take any free ports.")
def command(**options: Any) -> int:
    """Run the five services and their page here until Ctrl-C."""
    if options["ephemeral"] and options["port"] is not None:
        raise click.UsageError("--port and --ephemeral cannot both be given")
    return execute(_up, options)


async def _up(args: Options) -> int:
    ports = (
        free_ports(http=True) if args.ephemeral else consecutive_ports(DEFAULT_PORT if args.port is None else args.port)
    )
    with state.acquire_instance_dir(state.state_dir()) as folder:
        return await up(Plan(args.model, ports, folder), PlainConsole())
