"""`csm bench`: its options, its points one after another, what it prints and writes."""

from __future__ import annotations

import asyncio
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from csm.speech.v1 import speech_pb2
from rich.console import Console

from gateway.cli import connection
from gateway.cli.bench import fleet, report
from gateway.cli.bench.plan import Plan
from gateway.cli.bench.plot import NoPlot, plot
from gateway.cli.bench.progress import Line
from gateway.cli.bench.record import OK
from gateway.cli.bench.stats import Point, point
from gateway.cli.bench.texts import sentences
from gateway.cli.execution import Options, execute
from gateway.cli.options import HELP, TIMEOUT_S, Seconds, remote
from gateway.cli.terminal import PlainConsole
from gateway.cli.trace.spans import Span, TraceStore, is_complete

_STREAMS_A_PROCESS = 200  # what one client process reads with ease; more when the processors run out
_MS_PER_CHARACTER = 80.0
_TRACES = 100
_SETTLE_S = 1.0  # the services' own delay before they export


class _Counts(click.ParamType):
    """Whole numbers from 1 to 100000, with commas between."""

    name = "counts"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        try:
            counts = [int(part) for part in value.split(",")]
        except ValueError:
            counts = [0]
        if not all(1 <= count <= 100_000 for count in counts):
            self.fail(f"must be whole numbers from 1 to 100000 with commas between, not {value!r}", param, ctx)
        return counts


class _Rates(click.ParamType):
    """Numbers over 0 to 10000, with commas between."""

    name = "rates"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        try:
            rates = [float(part) for part in value.split(",")]
        except ValueError:
            rates = [0.0]
        if not all(0 < rate <= 10_000 for rate in rates):
            self.fail(f"must be numbers over 0 to 10000 with commas between, not {value!r}", param, ctx)
        return rates


@click.command("bench", context_settings=HELP)
@click.option(
    "--streams",
    type=_Counts(),
    metavar="N[,N…]",
    help="Closed loop: callers with one utterance at a time each (default 1).",
)
@click.option("--rate", type=_Rates(), metavar="R[,R…]", help="Open loop: utterances begun in a second, Poisson.")
@click.option(
    "--duration",
    type=Seconds(),
    default=30.0,
    metavar="SECONDS",
    help="New utterances begin for this long; those under way are heard to their end (default 30).",
)
@click.option(
    "--warmup",
    type=Seconds(zero=True),
    default=0.0,
    metavar="SECONDS",
    help="What begins earlier counts in no latency (default 0).",
)
@click.option(
    "--ramp-up",
    type=Seconds(zero=True),
    default=1.0,
    metavar="SECONDS",
    help="Closed loop: the callers come spread over this time (default 1).",
)
@click.option(
    "--buffer-ms",
    type=Seconds(zero=True),
    default=200.0,
    metavar="MS",
    help="How long after the first audio a listener begins to play (default 200).",
)
@click.option("--listen", is_flag=True, help="Closed loop: callers hear an utterance out before the next.")
@click.option(
    "--turns",
    type=click.IntRange(1, 1000),
    metavar="N",
    help="Closed loop: callers hold conversations of N turns, each heard out.",
)
@click.option(
    "--pause",
    type=Seconds(zero=True),
    default=1.0,
    metavar="SECONDS",
    help="Between two turns of a conversation (default 1).",
)
@click.option(
    "--prompt-seconds",
    type=Seconds(),
    default=None,
    metavar="SECONDS",
    help="Each utterance brings a voice prompt of this length.",
)
@click.option("--shared-prompt", is_flag=True, help="The same voice prompt for all; else each has its own.")
@click.option(
    "--target",
    type=click.Choice(["csm", "riva", "openai"]),
    default="csm",
    help="The interface: ours, Riva's, or OpenAI's speech endpoint (--address is then a URL). Any server's, for comparison.",
)
@click.option("--peer-voice", default="", metavar="NAME", help="Voice that riva or openai is asked for.")
@click.option("--peer-model", default="tts-1", metavar="NAME", help="Model that openai is asked for (default tts-1).")
@click.option("--audio-seconds", type=Seconds(), metavar="SECONDS", help="Longest audio of each utterance.")
@click.option(
    "--ms-per-character",
    type=Seconds(),
    metavar="MS",
    help=f"Longest audio of each utterance by its text (default {_MS_PER_CHARACTER:g}).",
)
@click.option("--speaker", type=int, default=0, help="Number of the voice (default 0).")
@click.option(
    "--processes",
    type=_Counts(),
    metavar="P",
    help=f"Client processes (default: one for {_STREAMS_A_PROCESS} streams, as processors allow).",
)
@click.option(
    "--connections", type=_Counts(), default="4", metavar="C", help="Connections of each process (default 4)."
)
@click.option("--seed", type=int, default=0, help="Of texts and arrivals (default 0).")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write bench.md and bench.json there, and bench.png for a sweep.",
)
@remote
def command(**options: Any) -> int:
    """Put load on a gateway and report what its callers heard: one point, or a sweep (--streams 1,16,64).

    Ctrl-C ends it with what there is.
    """
    if options["streams"] and options["rate"]:
        raise click.UsageError("--streams and --rate cannot both be given")
    if options["audio_seconds"] is not None and options["ms_per_character"] is not None:
        raise click.UsageError("--audio-seconds and --ms-per-character cannot both be given")
    if options["turns"] and (options["rate"] or options["target"] != "csm" or options["prompt_seconds"]):
        raise click.UsageError("--turns cannot be given with --rate, --target or --prompt-seconds")
    if options["prompt_seconds"] and options["target"] != "csm":
        raise click.UsageError("--prompt-seconds and --target cannot both be given")
    return execute(run, options)


async def run(args: Options) -> int:
    """0 when at every point some were measured, all went well and every byte was there; 130 when interrupted; else 1.

    When the gateway goes away between two points, the earlier ones are still reported.
    """
    err = PlainConsole(stderr=True)
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
    answer = await _ask(args)
    plans = [plan.within(answer) if args.target == "csm" else plan for plan in _plans(args)]
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
        "address": args.address if args.target == "openai" else connection.address(args),
        **_who(args, answer),
        "client": f"{os.cpu_count()} processors, processes {', '.join(str(p.processes) for p in bench.points)}",
    }
    if len(texts) < len(sentences()):
        facts["texts"] = (
            f"{len(texts)} of {len(sentences())} sentences: with their audio these surely fit {answer.max_seq_len} tokens"
        )
    if broken:
        facts["aborted"] = f"{broken}; {len(bench.plans) - len(bench.points)} of {len(bench.plans)} points are missing"
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


async def _ask(args: Options) -> speech_pb2.ListVoicesResponse:
    """What our gateway says of itself; raises when it cannot be used. Nothing of another target's server."""
    if args.target != "csm":
        await connection.peer(args, args.target).close()  # raises when the options cannot be used
        return speech_pb2.ListVoicesResponse()
    async with connection.client(args) as client:
        return await client.voices()


def _who(args: Options, answer: speech_pb2.ListVoicesResponse) -> dict[str, str]:
    if args.target != "csm":
        return {"interface": args.target, "voice": args.peer_voice or "(its default)"}
    return {"bundle": answer.bundle.bundle_id + ("" if answer.trained else " (random weights)")}


@dataclass
class _Bench:
    """The points of one command."""

    args: Options
    plans: list[Plan]
    err: Console

    def __post_init__(self) -> None:
        self.points: list[Point] = []

    async def run(self) -> bool:
        """Whether it was interrupted: then the last point is a part, and later ones are missing."""
        store = connection.traces(self.args) if self.args.target == "csm" else None
        for plan in self.plans:
            with Line(self.err) as line:
                outcome = await fleet.run(self.args, plan, self._processes(plan), line.show)
            try:
                traces = await _traces(store, outcome) if store and outcome.is_complete else []
            except asyncio.CancelledError:
                if (task := asyncio.current_task()) is not None:
                    task.uncancel()
                outcome.is_complete, traces = False, []
            self.points.append(point(outcome, traces))
            if not outcome.is_complete:
                return True
        return False

    def _processes(self, plan: Plan) -> int:
        if self.args.processes:
            return self.args.processes[0]
        wanted = math.ceil(plan.expected_streams / _STREAMS_A_PROCESS)
        return max(1, min(wanted, os.cpu_count() or 1))


def _plans(args: Options) -> list[Plan]:
    loads = [{"rate_hz": rate} for rate in args.rate] if args.rate else [{"streams": n} for n in args.streams or [1]]
    return [
        Plan(
            **load,
            duration_s=args.duration,
            ramp_up_s=min(args.ramp_up, args.duration / 2),
            warmup_s=args.warmup,
            buffer_s=args.buffer_ms / 1000,
            audio_s=args.audio_seconds,
            ms_per_character=args.ms_per_character or _MS_PER_CHARACTER,
            listens=args.listen,
            timeout_s=args.timeout or TIMEOUT_S,
            connections=args.connections[0],
            speaker=args.speaker,
            seed=args.seed + index,
            target=args.target,
            peer_voice=args.peer_voice,
            peer_model=args.peer_model,
            turns=args.turns or 0,
            pause_s=args.pause,
            prompt_s=args.prompt_seconds or 0.0,
            shares_prompt=args.shared_prompt,
        )
        for index, load in enumerate(loads)
    ]


async def _traces(store: TraceStore, outcome: fleet.Outcome) -> list[list[Span]]:
    """Whole traces of some utterances, the last ones: the store keeps no more than some hundred."""
    await asyncio.sleep(_SETTLE_S)
    ids = [record.trace_id for record in outcome.records if record.status == OK and record.trace_id]
    found = (store.read(trace_id) for trace_id in ids[-_TRACES:])
    return [spans for spans in found if is_complete(spans)]


def _write(folder: Path, text: str, bench: _Bench, facts: dict[str, Any], err: Console) -> None:
    (folder / "bench.md").write_text(text)
    (folder / "bench.json").write_text(report.to_json(bench.plans, bench.points, facts))
    if len(bench.points) > 1:
        first = bench.plans[0]
        try:
            plot(bench.points, folder / "bench.png", is_rate=first.rate_hz is not None, buffer_s=first.buffer_s)
        except NoPlot as why:
            err.print(str(why))
