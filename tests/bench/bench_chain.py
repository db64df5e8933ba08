"""The chain as processes on this machine, the callers of `csm bench` against its gateways, and what gives out first.

`tests/bench/bench_chain.sh` runs it. All from the environment; what cannot be used is refused before anything begins, and
chain_setup.py has the limits:

    POINTS      streams:seconds[:ramp] of each point (see DEFAULT_POINTS in chain_setup.py): callers at once, how long
                new utterances begin, over what time the callers come (half of it, four seconds at most; never longer than it).
                Or rate/s:seconds: an open loop of utterances of 4.3 s, as 20/s:15
    LISTEN      1: a caller hears an utterance out before the next, as people do; 0: the next when the last is received
    AUDIO_S     length of every utterance (20)
    TURNS       callers hold conversations of this many turns, each heard out, PAUSE_S (1) between two; 0: single utterances (0)
    PROMPT_S    each utterance brings a voice prompt of this length (0), with SHARED_PROMPT=1 the same one
    REPLICAS    backbones, each on a GPU of its own, in turn (1); CODECS (1), WATERMARKS (1) and GATEWAYS (2 a backbone) likewise.
                CODEC_GPU (0) and WATERMARK_GPU (the last) say where their first ones are
    COMPARE     0; 1: first with gateways that call one backbone, then with those that call all (REPLICAS is then 2), half of
                the time each. `all`: with one backbone, codec and watermark, then with as many of each as backbones
    POINTS_ALL  of a comparison's second half (the streams of POINTS times REPLICAS)
    SEARCH      0 or 1: with the time that is left, points in between, until it is known how many streams are carried (as COMPARE)
    LIMIT_S     for all of it, whole seconds (240): points that cannot end in time are not begun; what takes much longer than
                real time is cut off, and then no larger point is tried
    READY_S     for the services to start (90)
    BUNDLE      a bundle's name or folder; unset: CSM-1B's shapes with random weights, made first (SHAPES_FOLDER
                keeps them there for the next run)
    DEVICE      cuda or cpu, of backbone, codec and watermark (cuda), and with PROMPT_S of the tokenizer; WATERMARK_DEVICE for the
                watermark alone
    SLOTS       of each backbone (1024); codecs and watermarks share as many as all backbones have
    CODE        a checkout of another version, whose services run instead of this one's: the same load before and after a change
    TRACED      share of the requests that are traced (0.2)
    CPUS        processors of the services, as 0-15; the callers have the others (all processors for both)
    MPS         1: the processes share the GPU through NVIDIA's MPS, instead of taking turns on it (0)
    PRIORITY    1: with MPS=1 blocks of the backbone's kernels get a place before those of codec and watermark (0)
    RECORD      a folder: the services' metrics during each point, from the end of its ramp until no new utterance begins, go to
                a file there that the alerts' tests can replay (1000.yaml of 1000:70:10); RECORD_EVERY_S: 1, 3, 5 or 15 (5)
    OUT         where its files go (out/chain): chain.md, chain.json, chain.png, gpu.csv; logs.txt when something failed

Any CSM_… setting of the services that is set already stays as it is. What is measured is written after every point.
Exit code: 0; 1 when a setting cannot be used, something failed, or no utterance of a point was spoken to its end; 130 or 143
after SIGINT or SIGTERM, which stop all processes and leave nothing behind but what was written.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from chain_layout import Layout, read_layout
from chain_points import Done, Wish, next_streams
from chain_record import Recorder
from chain_report import write, write_logs, write_plot
from chain_setup import (
    call_s,
    callers_cpus,
    check_settings,
    configure,
    facts,
    kind,
    make_bundle,
    mps,
    out_folder,
    setting,
)
from chain_text import brief
from chain_use import Busy, Gpu, Reading, children, use_between
from csm_client.exceptions import SpeechError

from gateway.cli import state
from gateway.cli.bench import fleet
from gateway.cli.bench.plan import Plan
from gateway.cli.bench.record import OK
from gateway.cli.bench.stats import point as point_of
from gateway.cli.supervisor import ChildDied, Supervisor
from gateway.cli.trace.collector import Collector
from gateway.cli.trace.spans import Span, TraceStore, is_complete
from models.files import ModelError
from services.runtime.settings import StartError

_BEGAN = time.monotonic() - max(0.0, time.time() - (setting("BEGAN_S") or time.time()))
_RESERVE_S = 12.0  # to stop and to write
_STREAMS_A_PROCESS = 200  # of callers, as csm bench has it
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_TRACES = 1000  # utterances looked up, of which TRACED are there
Show = Callable[[fleet.Progress], None]


def elapsed_s() -> float:
    return time.monotonic() - _BEGAN


def left_s() -> float:
    return setting("LIMIT_S") - elapsed_s() - _RESERVE_S


def say(text: str) -> None:
    print(f"[{elapsed_s():5.1f} s] {text}", flush=True)


class Chain:
    """The running chain as it is measured."""

    def __init__(self, layout: Layout, gpu: Gpu, traces: TraceStore):
        self.layout, self.gpu, self._traces = layout, gpu, traces
        self._recorder = Recorder(layout)
        self._audio_s, self._listens = setting("AUDIO_S"), setting("LISTEN") == "1"
        self._kind, self._call_s = kind(), call_s()
        self.done: list[Done] = []

    async def warm(self, address: str) -> None:
        """A short point that does not count."""
        plan = replace(Wish(16, 0.5, 0.2).plan(min(2.0, self._audio_s), False), connections=1)
        outcome = await self._load(address, plan, 1, max(5.0, min(20.0, left_s())))
        failed = [f"{record.status}: {record.problem}" for record in outcome.records if record.status != OK]
        say(
            f"warm: {len(outcome.records) - len(failed)} utterances"
            + (f", {len(failed)} not ({failed[0]})" if failed else "")
        )

    async def point(self, phase: str, address: str, wish: Wish) -> Done:
        """Hold the load; what came of it is also the last of `done`."""
        plan = replace(wish.plan(self._audio_s, self._listens), **self._kind)
        processes = max(1, min(-(-wish.streams // _STREAMS_A_PROCESS), os.cpu_count() or 1))
        before = await asyncio.to_thread(self._read)
        clients_s = _children_s()
        async with Busy(self._pids()) as busy:
            most_s = min(wish.longest_s(self._call_s), max(left_s(), 5.0))
            outcome = await self._load(address, plan, processes, most_s, lambda _: self._recorder.begin(wish))
        after, clients_s = await asyncio.to_thread(self._read), _children_s() - clients_s
        use = use_between(before, after, busy.peaks(), self.gpu) | {"clients_cpu_s": clients_s}
        traces = await self._whole_traces(outcome) if left_s() > 2 else []
        done = Done(phase, wish, plan, point_of(outcome, traces), use)
        self.done.append(done)
        if told := await self._recorder.end(done):
            say(f"{wish}: {told}")
        return done

    @staticmethod
    async def _load(
        address: str, plan: Plan, processes: int, most_s: float, show: Show = lambda _: None
    ) -> fleet.Outcome:
        options = argparse.Namespace(
            address=address, timeout=plan.timeout_s, tls_ca="", tls_cert="", tls_key="", token_file=None
        )
        load = asyncio.ensure_future(fleet.run(options, plan, processes, show))
        try:
            await asyncio.wait({load}, timeout=most_s)
        finally:  # in time, too late or cancelled ourselves: its processes have ended
            if not load.done():
                load.cancel()  # it then tells what there is
                await asyncio.wait({load})
        # Nothing when its processes had not even begun.
        return fleet.Outcome(plan, processes, is_complete=False) if load.cancelled() else load.result()

    async def _whole_traces(self, outcome: fleet.Outcome) -> list[list[Span]]:
        await asyncio.sleep(1)  # the services' own delay before they export
        ids = [record.trace_id for record in outcome.records if record.status == OK and record.trace_id]
        return [spans for spans in map(self._traces.read, ids[-_TRACES:]) if is_complete(spans)]

    def _pids(self) -> dict[str, int]:
        """Process → id; the collector of traces is this one."""
        found = {listen: pid for pid, listen in children().items()}
        named = {process.name: found[process.address] for process in self.layout.processes if process.address in found}
        return named | {"collector": os.getpid()}

    def _read(self) -> Reading:
        pages = {process.name: f"http://{process.metrics}/metrics" for process in self.layout.processes}
        return Reading.now(self._pids(), pages)


def _children_s() -> float:
    """Processor time of all children that have ended: the callers."""
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


async def measure(chain: Chain, backbones: int, address: str, wishes: Sequence[Wish], ends_s: float, out: Path) -> None:
    """Points, then those between them, until `ends_s` (as elapsed_s counts)."""
    phase = "1 backbone" if backbones == 1 else f"{backbones} backbones"
    await chain.warm(address)

    async def one(wish: Wish) -> bool:
        before = next((done for done in reversed(chain.done) if done.phase == phase), None)
        # Who hears a conversation out is no faster when the chain is.
        expected_s = wish.expected_s(call_s(), None if setting("TURNS") else before)
        free_s = min(left_s(), ends_s - elapsed_s())
        if expected_s > free_s:
            say(f"{phase}, {wish}: not run, may take {expected_s:.0f} s, {max(0, free_s):.0f} are left")
            return False
        say(f"{phase}, {wish}: begins, should take {expected_s:.0f} s")
        done = await chain.point(phase, address, wish)
        await asyncio.to_thread(write, chain.done, facts(chain.layout), chain.gpu.csv(_BEGAN), out)
        say(brief(done))
        return True

    for wish in wishes:
        if chain.done and chain.done[-1].phase == phase and not chain.done[-1].point.is_complete:
            say(f"{phase}, {wish}: not run, fewer were cut off")
        else:
            await one(wish)
    most = int(os.environ["CSM_BACKBONE_SLOTS"]) * backbones  # more would wait for a slot
    while (setting("SEARCH") or setting("COMPARE")) != "0" and (streams := next_streams(chain.done, phase, most)):
        if not await one(wishes[-1].of(streams)):
            break


async def measure_all(chain: Chain, out: Path) -> None:
    """One backbone first when they are compared, then all."""
    wishes = setting("POINTS")
    counts, gateways = chain.layout.counts, chain.layout.gateways
    every = counts.of["backbone"]
    if counts.one:
        await measure(chain, 1, gateways(one=True), wishes, elapsed_s() + left_s() / 2, out)
        wishes = setting("POINTS_ALL") or [wish.times(every) for wish in wishes]
    await measure(chain, every, gateways(), wishes, elapsed_s() + left_s(), out)


async def run_until_signal(work: Path, out: Path) -> int:
    """`run`, which SIGINT and SIGTERM cancel, so that it stops all that it started; then 128 + the signal, as shells have it."""
    loop, task, told = asyncio.get_running_loop(), asyncio.current_task(), []

    def stop(number: int) -> None:
        told.append(number)
        if len(told) == 1:  # Ctrl-C in a terminal comes several times, from `timeout` too
            task.cancel()
            loop.set_exception_handler(lambda *_: None)  # what is cancelled on the way has nothing to tell
            say(f"{signal.Signals(number).name}: stopping")

    for number in _SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        code = await run(work, out)
    except BaseException:  # that we are cancelled, or what came of it
        if not told:
            raise
    return 128 + told[0] if told else code


async def run(work: Path, out: Path) -> int:
    layout, chain, failure = read_layout(), None, ""
    say(", ".join(f"{process.name}{f' on GPU {process.gpu}' if process.gpu else ''}" for process in layout.processes))
    try:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(mps(work))
            supervisors = await start(layout, work, stack)
            chain = Chain(layout, await stack.enter_async_context(Gpu()), TraceStore(work / "traces"))
            measuring = asyncio.ensure_future(measure_all(chain, out))
            died = [asyncio.ensure_future(supervisor.wait_died()) for supervisor in supervisors]
            try:
                ended, _ = await asyncio.wait({*died, measuring}, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(ended, key=lambda task: task is measuring):
                    task.result()
            finally:
                for task in (*died, measuring):
                    task.cancel()
                await asyncio.gather(*died, measuring, return_exceptions=True)
                say("measured; stopping")
    except (ChildDied, StartError, ModelError, SpeechError, fleet.WorkerFailed) as error:
        failure = str(error)
        say(failure)
    say("all stopped")
    done = chain.done if chain else []
    spoken = sum(one.point.ok for one in done)
    if not spoken:
        say("no utterance of a point was spoken to its end")
    if failure or not spoken or any(one.point.errors for one in done):
        write_logs(work / "logs", out)
    if done:
        print((out / "chain.md").read_text().partition("\n## ")[0], flush=True)  # the table; the rest is in the file
        write_plot(done, out)
    return 0 if spoken and not failure else 1


async def start(layout: Layout, work: Path, stack: contextlib.AsyncExitStack) -> list[Supervisor]:
    """All processes, ready; the backbones begin when their weights are made. Raises: StartError, ChildDied, SpeechError."""
    model, generator = setting("BUNDLE"), None
    if not model:
        model, generator = await make_bundle(work / "bundle", setting("DEVICE"))
    say(f"bundle: {model}" + (" but the generator" if generator else ""))
    configure(model, layout.counts)
    collector = await stack.enter_async_context(Collector(TraceStore(work / "traces")))
    env = {"CSM_MODEL": model, "CSM_LOG_FORMAT": "text", "CSM_GRACE_S": "5"}
    env["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.endpoint
    children, supervisors = layout.children(env), []
    backbones = [child for child in children if child.name.startswith("backbone")]
    for some in ([child for child in children if child not in backbones], backbones):
        if some is backbones and generator:
            await generator
            say("the generator's weights are made")
        supervisors.append(await stack.enter_async_context(Supervisor(some, work / "logs")))
    ready_s = min(setting("READY_S"), max(left_s(), 5.0))
    ready = [
        asyncio.ensure_future(one.wait_ready(ready_s, lambda child, _: say(f"  {child.name:<13} ready")))
        for one in supervisors
    ]
    try:
        await asyncio.gather(*ready)
    finally:
        for task in ready:
            task.cancel()
        await asyncio.gather(*ready, return_exceptions=True)
    state.register(state.Running(layout.gateways(), os.getpid(), str(work / "traces")), work)
    say("all ready")
    return supervisors


def main() -> int:
    check_settings()
    if setting("CPUS"):
        os.sched_setaffinity(0, callers_cpus())  # and this process's
    out = out_folder("chain.md", "chain.json", "chain.png", "gpu.csv", "logs.txt")
    for number in _SIGNALS:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    shm = Path("/dev/shm")  # 4 GB are written and read at once
    place = shm if shm.is_dir() and shutil.disk_usage(shm).free > 6e9 else None
    with tempfile.TemporaryDirectory(prefix="chain-", dir=place) as folder:
        os.environ["CSM_STATE_DIR"] = folder
        try:
            return asyncio.run(run_until_signal(Path(folder), out))
        finally:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)  # what is left to do is to remove the folder


if __name__ == "__main__":
    sys.exit(main())
