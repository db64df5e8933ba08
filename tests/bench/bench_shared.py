"""A frame's time while codec and watermark work on the same card: python tests/bench/bench_shared.py

Each stage is a process of its own under an MPS daemon of its own. The backbone replays a frame's graph back to back; codec and
watermark make passes of --frames frames at a pace: so many seconds of audio a second, `follow` what the frames make, or `flat`
out. A variant says what a stage's process is started with: comma-separated NAME=VALUE, for codec and watermark, or for
STAGE.NAME=VALUE for STAGE, where NAME is

    priority    CUDA_MPS_CLIENT_PRIORITY: 0 normal, 1 below it
    percentage  CUDA_MPS_ACTIVE_THREAD_PERCENTAGE: of the multiprocessors, at most
    stream      priority of the streams that its graphs are captured on: -5 (first) to 0
    code        a checkout of another version

Processes that variants have in common are started once; all are started side by side and do nothing unless asked.
--products: launches of a product alone beside the others, by its name in bench_products.py. --profile: the time of each kernel
of a frame. Both of the first --detailed variants.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from chain_setup import mps
from shared_stages import FOLLOW, FRAME, Answer, Request

STAGES = ("backbone", "codec", "watermark")
BESIDE = {"alone": (), "codec": ("codec",), "watermark": ("watermark",), "both": ("codec", "watermark")}
_NAMES = {
    "priority": "CUDA_MPS_CLIENT_PRIORITY", "percentage": "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",
    "stream": "STREAM_PRIORITY", "code": "PYTHONPATH",
}  # fmt: skip
_HERE = Path(__file__).parent
_MARGIN_S = 0.25  # that the others begin before the backbone and end after it
_FLAT = "flat"


@dataclass(frozen=True)
class Variant:
    name: str
    env: Mapping[str, Mapping[str, str]]  # of each stage's process

    @classmethod
    def read(cls, text: str) -> Variant:
        """Raises: ValueError."""
        env: dict[str, dict[str, str]] = {stage: {} for stage in STAGES}
        for item in text.split(",") if text != "plain" else ():
            key, is_said, value = item.partition("=")
            stage, _, name = key.rpartition(".")
            if not is_said or name not in _NAMES or stage not in ("", *STAGES):
                raise ValueError(f"{item!r}: must be [STAGE.]NAME=VALUE, NAME one of {', '.join(_NAMES)}")
            if name == "code":
                value = os.pathsep.join(str(Path(value).absolute() / part) for part in ("", "protos", "tests"))
                value += os.pathsep + os.environ.get("PYTHONPATH", "")
            for each in (stage,) if stage else BESIDE["both"]:
                env[each][_NAMES[name]] = value
        return cls(text, env)


def read_pace(text: str) -> float | str | None:
    """Raises: ValueError."""
    return None if text == _FLAT else text if text == FOLLOW else float(text)


class Worker:
    """A stage's process."""

    def __init__(self, process: asyncio.subprocess.Process):
        self._process = process

    @classmethod
    async def start(cls, stage: str, env: Mapping[str, str], options: Mapping[str, object]) -> Worker:
        """Raises: RuntimeError when it ends instead of being ready."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, _HERE / "shared_stages.py", stage, json.dumps(options),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=os.environ | env, limit=1 << 24,
        )  # fmt: skip
        worker = cls(process)
        try:
            while await worker._line() != "ready":
                pass
        except BaseException:
            worker.kill()
            raise
        return worker

    async def _line(self) -> str:
        assert self._process.stdout is not None
        if not (line := await self._process.stdout.readline()):
            raise RuntimeError("a stage's process has ended")
        return line.decode().strip()

    async def ask(self, request: Request, limit_s: float) -> Answer:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(request)).encode() + b"\n")
        try:
            async with asyncio.timeout(limit_s):
                while not (line := await self._line()).startswith("{"):
                    pass
        except TimeoutError:
            self.kill()  # its late answer would be taken for the next one
            raise
        return Answer(**json.loads(line))

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


Workers = Mapping[str, Sequence[Worker]]  # of each stage


def row(cells: Sequence[object]) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def spread(times_ms: Sequence[float]) -> str:
    """Mean and 95th percentile."""
    ordered = sorted(times_ms)
    return f"{statistics.fmean(ordered):.3f} | {ordered[int(0.95 * (len(ordered) - 1))]:.3f}" if ordered else "- | -"


def others_text(answer: Answer | None) -> str:
    """Seconds of audio a second, and a pass's mean time."""
    if answer is None or not answer.times_ms:
        return "- | -"
    return f"{answer.audio_s / answer.wall_s:.0f} | {statistics.fmean(answer.times_ms):.2f}"


async def together(
    workers: Workers, work: str, slots: int, beside: str, pace: float | str | None, seconds: float, profiles: bool = False
) -> tuple[Answer, dict[str, Answer]]:  # fmt: skip
    """The backbone's answer and those of the others, each stage's together."""
    now = time.monotonic() + 0.05
    begin, until = now + _MARGIN_S, now + _MARGIN_S + seconds
    asked = [(workers["backbone"][0], Request(begin, until, work, slots, profiles=profiles))]
    stages = [stage for stage in BESIDE[beside] for _ in workers[stage]]
    for stage in BESIDE[beside]:
        share = 1 / len(workers[stage])
        margin_s = 0.0 if pace == FOLLOW else _MARGIN_S  # without frames there is nothing to follow
        its = Request(begin - margin_s, until + margin_s, pace=pace, share=share)
        asked += [(each, its) for each in workers[stage]]
    mine, *found = await asyncio.gather(*(worker.ask(each, 4 * seconds + 15) for worker, each in asked))
    answers = {}
    for stage in BESIDE[beside]:
        theirs = [answer for of, answer in zip(stages, found, strict=True) if of == stage]
        times_ms = [each for answer in theirs for each in answer.times_ms]
        answers[stage] = Answer(times_ms, sum(each.audio_s for each in theirs), max(each.wall_s for each in theirs))
    return mine, answers


async def measure(arguments: argparse.Namespace, variant: Variant, workers: Workers) -> None:
    """Beside each of the others at the first pace, beside all of them at every pace."""
    loads = [("alone", None), *((beside, arguments.pace[0]) for beside in arguments.beside)]
    loads += [(arguments.beside[-1], pace) for pace in arguments.pace[1:]]
    for work in (FRAME, *(arguments.products if variant in arguments.variants[: arguments.detailed] else ())):
        for slots in arguments.slots:
            for beside, pace in loads if work == FRAME else [("alone", None), ("both", arguments.pace[0])]:
                seconds = arguments.seconds if work == FRAME else arguments.seconds / 4
                mine, others = await together(workers, work, slots, beside, pace, seconds)
                what = beside if beside == "alone" else f"{beside}, {_FLAT if pace is None else pace}"
                made = f"{mine.audio_s / mine.wall_s:.0f}" if work == FRAME else "-"
                row([
                    variant.name, work, slots, what, spread(mine.times_ms), made,
                    *(others_text(others.get(stage)) for stage in BESIDE["both"]),
                ])  # fmt: skip


async def profile(arguments: argparse.Namespace, variant: Variant, workers: Workers) -> None:
    for beside, pace in (("alone", None), ("both", arguments.pace[0])):
        slots = arguments.slots[0]
        mine, _ = await together(workers, FRAME, slots, beside, pace, arguments.seconds, profiles=True)
        print(f"\n{variant.name}, {slots} slots, {beside}: {mine.text}", flush=True)


async def run(arguments: argparse.Namespace) -> None:
    os.environ.setdefault("MPS", "1" if arguments.device == "cuda" else "0")
    began = time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "made").write_bytes(bytes(8))
        await stack.enter_async_context(mps(folder))
        options = vars(arguments) | {"made": str(folder / "made"), "variants": [], "pace": []}
        count = {"backbone": 1, "codec": arguments.codecs, "watermark": arguments.watermarks}
        keys = {(stage, *variant.env[stage].items()) for variant in arguments.variants for stage in STAGES}
        order = [key for key in sorted(keys) for _ in range(count[key[0]])]
        found = await asyncio.gather(
            *(Worker.start(key[0], dict(key[1:]), options) for key in order), return_exceptions=True
        )
        workers: dict[tuple[object, ...], list[Worker]] = {key: [] for key in keys}
        for key, worker in zip(order, found, strict=True):
            if isinstance(worker, Worker):
                workers[key].append(worker)
                stack.callback(worker.kill)
            else:
                print(f"{key}: {worker!r}", flush=True)
        print(
            f"{sum(map(len, workers.values()))} processes after {time.monotonic() - began:.0f} s, MPS={os.environ['MPS']}\n"
        )
        row(["variant", "work", "slots", "beside, seconds of audio a second", "mean ms", "p95", "made/s",
             "codec/s", "ms a pass", "watermark/s", "ms a pass"])  # fmt: skip
        row(["---"] * 11)
        for call in (measure, *([profile] if arguments.profile else [])):
            for variant in arguments.variants[: arguments.detailed if call is profile else None]:
                its = {stage: workers[stage, *variant.env[stage].items()] for stage in STAGES}
                if not all(its.values()):
                    continue
                try:
                    await call(arguments, variant, its)
                except (RuntimeError, TimeoutError, OSError):  # one that fails must not cost the others their numbers
                    traceback.print_exc()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="The head of this file says what a variant is."
    )
    parser.add_argument("--variants", type=Variant.read, nargs="+", default=[Variant.read("plain")])
    parser.add_argument("--slots", type=int, nargs="+", default=[1024])
    parser.add_argument("--context", type=int, default=430)
    parser.add_argument("--frames", type=int, default=8, help="of each stream in a pass of codec and watermark")
    parser.add_argument("--codec-streams", type=int, default=128)
    parser.add_argument("--watermark-streams", type=int, default=64)
    parser.add_argument("--codecs", type=int, default=1, help="processes, which share the pace")
    parser.add_argument("--watermarks", type=int, default=1)
    parser.add_argument("--beside", nargs="+", choices=[*BESIDE][1:], default=[*BESIDE][1:])
    parser.add_argument("--pace", type=read_pace, nargs="+", default=[1600.0, FOLLOW, None])
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--products", nargs="*", default=[])
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--detailed", type=int, default=1, help="of how many variants, products and kernels too")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try this script without a GPU")
    arguments = parser.parse_args()
    asyncio.run(run(arguments))


if __name__ == "__main__":
    main()
