"""`csm trace`: a picture of a request, from its trace."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from gateway.cli import state
from gateway.cli.execution import Options, execute
from gateway.cli.options import HELP, OutputFile
from gateway.cli.say import replacing
from gateway.cli.terminal import PlainConsole, plain_line
from gateway.cli.trace.lookup import find, known
from gateway.cli.trace.page import page, story
from gateway.cli.trace.request_trace import requests_of
from gateway.cli.trace.waterfall import seconds

_LISTED = 40


@click.command("trace", context_settings=HELP)
@click.argument("id", required=False)
@click.option(
    "-o", "--output", type=OutputFile(".html", ".htm"), metavar="FILE.html", help="Default: trace-ID.html, here."
)
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    metavar="SPANS.json",
    help="Look in this file, not in what `csm up` keeps: OTLP JSON, as a collector's file exporter writes it "
    "or as Tempo and Jaeger answer.",
)
@click.option("--text", metavar="TEXT", help="What was said, for the heading; traces do not hold it.")
@click.option("--list", is_flag=True, help="List the requests that are there, and draw nothing.")
def command(**options: Any) -> int:
    """Draw where a request's time went: one HTML file that needs no server and no network.

    ID is a trace id, the beginning of one, or a traceparent (default: the last `csm say`).
    """
    return execute(lambda args: trace(args, PlainConsole(), PlainConsole(stderr=True)), options)


async def trace(args: Options, out: Console, err: Console) -> int:
    """Write the page, and say in a line or two what it shows. Raises: TraceError, OSError."""
    if args.list:
        return _list(args, out)
    with err.status("looking for the trace"):
        found = await find(args.id, args.file, state.state_dir())
    html = page(found.trace_id, found.spans, args.text)
    path = args.output or Path(f"trace-{found.trace_id[:8]}.html")
    if str(path) == "-":
        sys.stdout.buffer.write(html.encode())
        return 0
    with replacing(path) as file:
        file.write(html.encode())
    request = requests_of(found.spans)[-1]
    # One line each; what is long is a path or an id, which must stay whole to be copied.
    out.print(
        f"{path}: trace {found.trace_id}{f', {found.chosen}' if found.chosen else ''}\n{plain_line(story(request))}"
    )
    if request.missing_spans:
        out.print(f"The trace is incomplete: it lacks {plain_line(', '.join(request.missing_spans))}.")
    return 0


def _list(args: Options, out: Console) -> int:
    rows = [
        (found.trace_id, request)
        for found in known(args.file, state.state_dir())
        for request in requests_of(found.spans)[::-1]
    ]
    for trace_id, request in rows[:_LISTED]:
        took = seconds(request.took_s) if request.took_s is not None else ""
        method = request.root.name.rpartition("/")[2] if request.root else ""
        out.print(
            f"{trace_id}  {request.started[:19]}  {took:>9}  {request.status or 'incomplete':<18}"
            f" {plain_line(method)}".rstrip()
        )
    if not rows:
        out.print("no requests")
    if len(rows) > _LISTED:
        out.print(f"and {len(rows) - _LISTED} older ones")
    return 0
