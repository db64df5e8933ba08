"""A stage's work in a process of its own, as bench_shared.py asks for it line by line. Loads no services, only their cores.

Started as `python tests/bench/shared_stages.py STAGE OPTIONS`, OPTIONS a JSON object of bench_shared.py's. Writes "ready", then
answers each line of standard input, a JSON object of Request's fields, by a line: a JSON object of Answer's.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

FRAME_S = 0.08
FRAME, FOLLOW = "frame", "follow"
_AS_CSM_1B = "csm-1b"
_POLL_S = 0.0002
_LAUNCHES = 16  # of a product in one graph


@dataclass(frozen=True)
class Request:
    """begin, until: when to work, by time.monotonic(), which is one clock for all processes of a machine.

    work: of the backbone: FRAME or a product's name; KERNELS of a frame are looked at where `profiles`.
    slots: of the frame, rows of the product. pace: of the others, seconds of audio a second; None: all that they
    can; FOLLOW: what the backbone's frames have made. share: of that, where a stage has several processes.
    """

    begin: float
    until: float
    work: str = FRAME
    slots: int = 0
    pace: float | str | None = None
    share: float = 1.0
    profiles: bool = False


@dataclass
class Answer:
    """times_ms: of each frame, launch of a product, or pass; audio_s: of all of them; wall_s: in what time."""

    times_ms: list[float] = field(default_factory=list)
    audio_s: float = 0.0
    wall_s: float = 0.0
    text: str = ""


class Made:
    """Seconds of audio that the backbone's frames have made, in a file that all processes see."""

    def __init__(self, path: Path):
        with open(path, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 8)

    @property
    def audio_s(self) -> float:
        return struct.unpack("d", self._memory[:8])[0]

    @audio_s.setter
    def audio_s(self, value: float) -> None:
        self._memory[:8] = struct.pack("d", value)


def on_streams_of(priority: int) -> None:
    """Graphs of this process are captured on streams of that priority: the lower, the sooner its blocks get a place."""
    from services.engine.graphs import GraphRecorder

    made = GraphRecorder.__init__

    def make(self: GraphRecorder) -> None:
        made(self)
        self._stream = torch.cuda.Stream(priority=priority)

    GraphRecorder.__init__ = make  # type: ignore[method-assign]


class Backbone:
    """Frames, and products alone, back to back, the host one ahead."""

    def __init__(self, options: Namespace, made: Made):
        from baselines import random_model
        from bench_generator import TINY
        from bench_products import PRODUCTS, Product
        from frames import Frames

        from models.bundle import load_bundle
        from services.backbone.graph_runner import kernel_plan_for

        self._device, self._made = torch.device(options.device), made
        part = TINY if options.tiny else load_bundle(_AS_CSM_1B).generator
        self._is_cuda = self._device.type == "cuda"
        model = random_model(part, self._device, torch.bfloat16 if self._is_cuda else torch.float32)
        self._frames = Frames(model, part, max(options.slots), options.context)
        plan = kernel_plan_for if self._is_cuda else (lambda _: kernel_plan_for(2, overlap=False))
        self._work: dict[tuple[str, int], tuple[Callable[[], None], int]] = {}  # what does it, and launches in it
        self._kept: list[Any] = []
        for slots in sorted(options.slots, reverse=True):
            self._work[FRAME, slots] = self._frames.build(slots, plan(slots)), 1
        by_name: dict[str, Product] = {product.name: product for product in PRODUCTS}
        for name in options.products:
            for slots in options.slots:
                self._work[name, slots] = self._product(by_name[name], slots), _LAUNCHES

    def _product(self, product: Any, rows: int) -> Callable[[], None]:
        """A graph of _LAUNCHES of it, each with weights of its own."""
        from services.engine.graphs import GraphRecorder

        size, work = (product.weight_rows, product.width), product.call(rows, self._device)
        weights = [
            torch.randn(size, device=self._device, dtype=torch.bfloat16) * product.width**-0.5 for _ in range(_LAUNCHES)
        ]
        replay, _ = GraphRecorder()(lambda: [work(weight) for weight in weights])
        self._kept.append((work, weights))  # a graph keeps nothing that it reads
        return replay

    def answer(self, request: Request) -> Answer:
        run, launches = self._work[request.work, request.slots]
        if request.profiles:
            return self._profile(run, request)
        wait_until(request.begin)
        result, since = Answer(), self._frames.before_rewind  # since: the last rewind
        marks: list[Any] = []
        began = time.monotonic()
        while time.monotonic() < request.until:
            if request.work == FRAME and since >= self._frames.before_rewind - 1:
                if marks:
                    marks.pop()[1].synchronize()
                self._frames.rewind(request.slots)
                since = 0
                marks = [(None, self._mark())]
            run()
            marks.append((marks[-1][1] if marks else None, self._mark()))
            since += 1
            if len(marks) > 1:
                self._note(marks.pop(0), launches, request, result)
        for mark in marks:
            self._note(mark, launches, request, result)
        result.wall_s = time.monotonic() - began
        return result

    def _mark(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        mark = torch.cuda.Event(enable_timing=True, blocking=True)
        mark.record()
        return mark

    def _note(self, pair: tuple[Any, Any], launches: int, request: Request, result: Answer) -> None:
        """What lies between two marks, once it is over."""
        before, after = pair
        if before is None:
            return
        if self._is_cuda:
            after.synchronize()
        took_ms = before.elapsed_time(after) if self._is_cuda else (after - before) * 1e3
        result.times_ms.append(took_ms / launches)
        if request.work == FRAME:
            result.audio_s += request.slots * FRAME_S
            self._made.audio_s += request.slots * FRAME_S

    def _profile(self, run: Callable[[], None], request: Request) -> Answer:
        from kernel_times import KernelTimes

        self._frames.rewind(request.slots)
        wait_until(request.begin)
        seen = KernelTimes(run, self._device, 6)
        return Answer(text=f"{seen.launches:.0f} launches, {seen.busy_ms:.2f} ms in them\n\n{seen.table(FRAME, 24)}")


class Passes:
    """Passes of codec or watermark at a pace."""

    def __init__(self, step: Callable[[], float], made: Made):
        """step: does a pass and returns its seconds of audio."""
        self._step, self._made = step, made
        for _ in range(3):
            self._size_s = step()

    def answer(self, request: Request) -> Answer:
        result = Answer()
        wait_until(request.begin)
        first_s, began = self._made.audio_s, time.monotonic()
        while (now := time.monotonic()) < request.until:
            if request.pace == FOLLOW:
                due_s = self._made.audio_s - first_s
            else:
                due_s = float(request.pace) * (now - began) if request.pace is not None else np.inf
            if due_s * request.share < result.audio_s + self._size_s:
                time.sleep(_POLL_S)
                continue
            result.audio_s += self._step()
            result.times_ms.append((time.monotonic() - now) * 1e3)
        result.wall_s = time.monotonic() - began
        return result


def wait_until(when: float) -> None:
    time.sleep(max(0.0, when - time.monotonic()))


def codec_step(options: Namespace) -> Callable[[], float]:
    from bench_codec import build, look_back

    from services.codec.decoder import SlotDecoder

    device, streams, frames = torch.device(options.device), options.codec_streams, options.frames
    decoder = SlotDecoder(build(device, options.tiny), slots=streams, graphs=True, precision=precision_on(device))
    assert decoder._graphs is not None
    decoder._graphs._streams, decoder._graphs.frames = [streams], [frames]
    decoder.warm_up()
    look_back(decoder)
    codes = np.random.default_rng(0).integers(0, decoder.bins, (streams, frames, decoder.codebooks))
    batch = list(enumerate(codes))
    return lambda: sum(map(len, decoder.decode(batch))) / decoder.samples_per_frame * FRAME_S


def watermark_step(options: Namespace) -> Callable[[], float]:
    from bench_watermark import RATE_HZ, TINY, Load, build

    from services.watermark.hparams import Hparams

    device, shape = torch.device(options.device), TINY if options.tiny else Hparams()
    embedder = build(shape, device, options.watermark_streams, precision_on(device))
    embedder.warm_up()
    load = Load(embedder, options.watermark_streams, options.frames)
    return lambda: load.step() / RATE_HZ


def precision_on(device: torch.device) -> str:
    return "fp16" if device.type == "cuda" else "fp32"


def main() -> None:
    stage, options = sys.argv[1], Namespace(**json.loads(sys.argv[2]))
    if priority := os.environ.get("STREAM_PRIORITY"):
        on_streams_of(int(priority))
    made = Made(Path(options.made))
    if stage == "backbone":
        work: Backbone | Passes = Backbone(options, made)
    else:
        work = Passes({"codec": codec_step, "watermark": watermark_step}[stage](options), made)
    print("ready", flush=True)
    for line in sys.stdin:
        with torch.inference_mode():
            print(json.dumps(asdict(work.answer(Request(**json.loads(line))))), flush=True)


if __name__ == "__main__":
    main()
