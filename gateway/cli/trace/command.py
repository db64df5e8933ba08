"""`csm trace`: a picture of a request, from its trace."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from gateway.cli import state
from gateway.cli.say import replacing
from gateway.cli.terminal import plain_line
from gateway.cli.trace.lookup import find, known
from gateway.cli.trace.page import page, story
from gateway.cli.trace.request_trace import requests_of
from gateway.cli.trace.waterfall import seconds

_LISTED = 40


def add_parser(commands: argparse._SubParsersAction, run: Callable) -> None:
    """The subcommand's own options."""
    command = commands.add_parser(
        "trace",
        help="draw where a request's time went, as one HTML file",
        description="Draw where a request's time went: one HTML file that needs no server and no network.",
    )
    command.add_argument(
        "id",
        nargs="?",
        metavar="ID",
        help="a trace id, the beginning of one, or a traceparent (default: the last `csm say`)",
    )
    command.add_argument("-o", "--output", type=Path, metavar="FILE.html", help="default: trace-ID.html, here")
    command.add_argument(
        "--file",
        type=Path,
        metavar="SPANS.json",
        help="look in this file, not in what `csm up` keeps: OTLP JSON, as a collector's file exporter writes it "
        "or as Tempo and Jaeger answer",
    )
    command.add_argument("--text", metavar="TEXT", help="what was said, for the heading; traces do not hold it")
    command.add_argument("--list", action="store_true", help="list the requests that are there, and draw nothing")
    command.set_defaults(run=run)


async def trace(args: argparse.Namespace, out: Console, err: Console) -> int:
    """Write the page, and say in a line or two what it shows. Raises: TraceError, OSError."""
    if args.list:
        return _list(args, out)
    with err.status("looking for the trace"):
        found = await find(args.id, args.file, state.state_dir())
    html = page(found.trace_id, found.spans, args.text)
    path = args.output or Path(f"trace-{found.trace_id[:8]}.html")
    with replacing(path) as file:
        file.write(html.encode())
    request = requests_of(found.spans)[-1]
    # One line each; what is long is a path or an id, which must stay whole to be copied.
    out.print(
        f"{path}: trace {found.trace_id}{f', {found.chosen}' if found.chosen else ''}\n{plain_line(story(request))}"
    )
    if request.lacks:
        out.print(f"The trace is incomplete: it lacks {plain_line(', '.join(request.lacks))}.")
    return 0


def _list(args: argparse.Namespace, out: Console) -> int:
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
