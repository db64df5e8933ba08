"""`csm bench`: its options, its points one after another, what it prints and writes."""

from __future__ import annotations

import argparse
import asyncio
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from gateway.cli import connection
from gateway.cli.bench import fleet, report
from gateway.cli.bench.plan import Plan
from gateway.cli.bench.plot import NoPlot, plot
from gateway.cli.bench.progress import Line
from gateway.cli.bench.record import OK
from gateway.cli.bench.stats import Point, point
from gateway.cli.bench.texts import sentences
from gateway.cli.terminal import PlainConsole
from gateway.cli.trace.traces import Span, TraceStore, is_whole

_STREAMS_A_PROCESS = 200  # what one client process reads with ease; more when the processors run out
_TRACES = 100
_SETTLE_S = 1.0  # the services' own delay before they export


def add_parser(commands: Any, remote: argparse.ArgumentParser) -> None:
    """Add `bench` to the subparsers of `csm`; remote: the options of commands that call a gateway."""
    command = commands.add_parser(
        "bench",
        parents=[remote],
        help="put load on a gateway and tell what its callers heard",
        description="Load on a gateway: one point, or a sweep (--streams 1,16,64). Ctrl-C ends it with what there is.",
    )
    load = command.add_mutually_exclusive_group()
    load.add_argument(
        "--streams", type=_counts, metavar="N[,N…]", help="closed loop: callers with one utterance at a time each (1)"
    )
    load.add_argument("--rate", type=_rates, metavar="R[,R…]", help="open loop: utterances begun in a second, Poisson")
    command.add_argument(
        "--duration",
        type=connection.seconds,
        default=30.0,
        metavar="SECONDS",
        help="new utterances begin for so long; those under way are heard to their end (30)",
    )
    command.add_argument(
        "--warmup",
        type=_not_negative,
        default=0.0,
        metavar="SECONDS",
        help="what begins earlier counts in no latency (0)",
    )
    command.add_argument(
        "--ramp-up",
        type=_not_negative,
        default=1.0,
        metavar="SECONDS",
        help="closed loop: the callers come spread over this time (1)",
    )
    command.add_argument(
        "--buffer-ms",
        type=_not_negative,
        default=200.0,
        metavar="MS",
        help="how long after the first audio a listener begins to play (200)",
    )
    command.add_argument(
        "--listen", action="store_true", help="closed loop: callers hear an utterance out before the next"
    )
    length = command.add_mutually_exclusive_group()
    length.add_argument(
        "--audio-seconds", type=connection.seconds, metavar="SECONDS", help="longest audio of each utterance"
    )
    length.add_argument(
        "--ms-per-character",
        type=connection.seconds,
        default=80.0,
        metavar="MS",
        help="longest audio of each utterance by its text (80)",
    )
    command.add_argument("--speaker", type=int, default=0, help="number of the voice (0)")
    command.add_argument(
        "--processes",
        type=_counts,
        metavar="P",
        help=f"client processes (default: one for {_STREAMS_A_PROCESS} streams, as processors allow)",
    )
    command.add_argument(
        "--connections", type=_counts, default=[4], metavar="C", help="connections of each process (4)"
    )
    command.add_argument("--seed", type=int, default=0, help="of texts and arrivals (0)")
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help="write bench.md and bench.json there, and bench.png for a sweep",
    )
    command.set_defaults(run=run)


async def run(args: argparse.Namespace) -> int:
    """0 when at every point some were measured, all went well and every byte was there; 130 when interrupted; else 1.

    When the gateway goes away between two points, the earlier ones are still told.
    """
    err = PlainConsole(stderr=True)
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
    async with connection.client(args) as client:
        answer = await client.voices()  # raises what is wrong, if nobody answers
    plans = [plan.within(answer) for plan in _plans(args)]
    texts = plans[0].texts  # alike in all
    if not texts:
        err.print(
            f"csm: no sentence fits: text and audio of one request may take {answer.max_seq_len} tokens, one for each frame"
        )
        return 1
    bench = _Bench(args, plans, err)
    stopped, broken = False, ""
    try:
        stopped = await bench.run()
    except fleet.WorkerFailed as error:
        err.print(f"csm: {error}")
        if not bench.points:
            return 1
        broken = str(error)
    facts = {
        "address": connection.address(args),
        "bundle": answer.bundle.bundle_id + ("" if answer.trained else " (random weights)"),
        "client": f"{os.cpu_count()} processors, processes {', '.join(str(p.processes) for p in bench.points)}",
    }
    if len(texts) < len(sentences()):
        facts["texts"] = (
            f"{len(texts)} of {len(sentences())} sentences: with their audio these surely fit {answer.max_seq_len} tokens"
        )
    if broken:
        facts["broken off"] = (
            f"{broken}; {len(bench.plans) - len(bench.points)} of {len(bench.plans)} points are missing"
        )
    text = report.markdown(bench.plans, bench.points, facts)
    print(text, end="", flush=True)
    if args.output is not None:
        _write(args.output, text, bench, facts, err)
    if stopped:
        return 130
    silent = [point.label for point in bench.points if not point.measured and not point.errors]
    if silent:
        err.print(
            f"csm: no utterance was measured at {', '.join(silent)}: --duration is too short, or --warmup too long"
        )
    return 1 if broken or silent or any(point.errors for point in bench.points) else 0


@dataclass
class _Bench:
    """The points of one command."""

    args: argparse.Namespace
    plans: list[Plan]
    err: Console

    def __post_init__(self) -> None:
        self.points: list[Point] = []

    async def run(self) -> bool:
        """Whether it was interrupted: then the last point is a part, and later ones are missing."""
        store = connection.traces(self.args)
        for plan in self.plans:
            with Line(self.err) as line:
                outcome = await fleet.run(self.args, plan, self._processes(plan), line.show)
            try:
                traces = await _traces(store, outcome) if store and outcome.is_whole else []
            except asyncio.CancelledError:
                asyncio.current_task().uncancel()
                outcome.is_whole, traces = False, []
            self.points.append(point(outcome, traces))
            if not outcome.is_whole:
                return True
        return False

    def _processes(self, plan: Plan) -> int:
        if self.args.processes:
            return self.args.processes[0]
        wanted = math.ceil(plan.expected_streams / _STREAMS_A_PROCESS)
        return max(1, min(wanted, os.cpu_count() or 1))


def _plans(args: argparse.Namespace) -> list[Plan]:
    loads = [{"rate_hz": rate} for rate in args.rate] if args.rate else [{"streams": n} for n in args.streams or [1]]
    return [
        Plan(
            **load,
            duration_s=args.duration,
            ramp_up_s=min(args.ramp_up, args.duration / 2),
            warmup_s=args.warmup,
            buffer_s=args.buffer_ms / 1000,
            audio_s=args.audio_seconds,
            ms_per_character=args.ms_per_character,
            listens=args.listen,
            timeout_s=args.timeout,
            connections=args.connections[0],
            speaker=args.speaker,
            seed=args.seed + index,
        )
        for index, load in enumerate(loads)
    ]


async def _traces(store: TraceStore, outcome: fleet.Outcome) -> list[list[Span]]:
    """Whole traces of some utterances, the last ones: the store keeps no more than some hundred."""
    await asyncio.sleep(_SETTLE_S)
    ids = [record.trace_id for record in outcome.records if record.status == OK and record.trace_id]
    found = (store.read(trace_id) for trace_id in ids[-_TRACES:])
    return [spans for spans in found if is_whole(spans)]


def _write(folder: Path, text: str, bench: _Bench, facts: dict[str, Any], err: Console) -> None:
    (folder / "bench.md").write_text(text)
    (folder / "bench.json").write_text(report.to_json(bench.plans, bench.points, facts))
    if len(bench.points) > 1:
        first = bench.plans[0]
        try:
            plot(bench.points, folder / "bench.png", is_rate=first.rate_hz is not None, buffer_s=first.buffer_s)
        except NoPlot as why:
            err.print(str(why))


def _counts(value: str) -> list[int]:
    try:
        counts = [int(part) for part in value.split(",")]
    except ValueError:
        counts = [0]
    if not all(1 <= count <= 100_000 for count in counts):
        raise argparse.ArgumentTypeError(f"must be whole numbers from 1 to 100000 with commas between, not {value!r}")
    return counts


def _rates(value: str) -> list[float]:
    try:
        rates = [float(part) for part in value.split(",")]
    except ValueError:
        rates = [0.0]
    if not all(0 < rate <= 10_000 for rate in rates):
        raise argparse.ArgumentTypeError(f"must be numbers over 0 to 10000 with commas between, not {value!r}")
    return rates


def _not_negative(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 86_400:
        raise argparse.ArgumentTypeError(f"must be 0 to 86400, not {value!r}")
    return number
