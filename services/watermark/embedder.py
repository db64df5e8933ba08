"""Mark audio as it streams by: as many samples out as in, late by a fixed look-ahead.

A stream is resampled to the model's rate, cut into STFT columns, and each column's mark (a
magnitude to take away, bin by bin) is computed from the columns around it. The mark alone is
transformed back, resampled to the stream's rate and added to the untouched input, so that the
audio itself never goes through a resampler. What a stream gives does not depend on how it was cut,
nor on which streams it was marked with. All of it is done for many streams in one pass, where the
nets lie, on state in pools (passes.py, slots.py); on the host a stream is a few whole numbers, reckoned
for all streams of a pass at once (plan.py).
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.watermark.graphs import PassGraphs, Recorder
from services.watermark.kernels import PRECISIONS
from services.watermark.key import check_key, key_symbols
from services.watermark.level import FixedLevel, Level
from services.watermark.marker import Marker
from services.watermark.passes import Given, Passes
from services.watermark.plan import FAR, MOST_COLUMNS, Numbers, Places, Plan, most_streams
from services.watermark.reach import Reach
from services.watermark.resampler import Bank, Kernel
from services.watermark.slots import Slots
from services.watermark.spectrum import Framing
from services.watermark.stream import EmbedStream
from services.watermark.weights import Nets

log = logging.getLogger(__name__)

_MOST_OF_ONE = 32  # columns that a stream brings to a pass that is not filled up
_CHUNKS_S = (0.08, 0.16, 0.32, 0.64)  # what streams mostly bring; a pass on a GPU is for one of these lengths
# Streams that passes on a GPU are filled up to.
_STREAMS = sorted({1, *(base << bit for bit in range(9) for base in (2, 3) if base << bit <= MOST_COLUMNS)})


class _Begun(NamedTuple):
    """A pass that is not waited for."""

    streams: list[EmbedStream]
    given: list[int]  # samples of each
    marked: Tensor  # on the host, [streams, m + 1]


class Embedder:
    """Marks any number of streams with one key."""

    def __init__(
        self,
        nets: Nets,
        key: bytes,
        *,
        sample_rate_hz: int = 24000,
        message_sdr_db: float | None = None,
        level: Level | None = None,
        slots: int = 1,
        fill: bool | None = None,
        graphs: bool = True,
        precision: str | None = None,
    ):
        """
        key: what to write, exactly `nets.hparams.key_bytes` bytes.
        sample_rate_hz: rate of the streams, whatever the model's.
        message_sdr_db: how far the mark's power lies below the level's, before what cannot be taken
            from quiet bins is left out; default the model's own.
        level: default FixedLevel().
        slots: how many streams to have room for from the start.
        fill: whether passes are filled up to few sizes; None: on CUDA.
        graphs: whether warm_up() captures those on CUDA.
        precision: of the nets' products, one of kernels.PRECISIONS; default: fp32 on the CPU, tf32 on CUDA, whose
            cuDNN has one switch between these two for the whole process, which this sets.

        Raises: ValueError when key, SDR or precision is out of bounds.
        """
        shape = nets.hparams
        sdr_db = shape.message_sdr_db if message_sdr_db is None else message_sdr_db
        if not 0 <= sdr_db <= 100:
            raise ValueError(f"message_sdr_db is {sdr_db}, must be between 0 and 100")
        self.hparams = shape
        self.sample_rate_hz = sample_rate_hz
        self.device = next(nets.enc_c.parameters()).device
        is_cuda = self.device.type == "cuda"
        self.precision = precision or ("tf32" if is_cuda else "fp32")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {precision!r}, must be one of {', '.join(PRECISIONS)}")
        if is_cuda and self.precision != "fp16":
            torch.backends.cudnn.allow_tf32 = self.precision == "tf32"
        self._framing = Framing(shape.n_fft, shape.hop_length, self.device)
        kernels = (Kernel(sample_rate_hz, shape.sample_rate_hz), Kernel(shape.sample_rate_hz, sample_rate_hz))
        self._inward, self._outward = banks = tuple(Bank(kernel, self.device) for kernel in kernels)
        self.reach = Reach(shape, self._framing, kernels, banks)
        columns_per_second = shape.sample_rate_hz / shape.hop_length
        self._fill = is_cuda if fill is None else fill
        chunks = {self.reach.most_columns(round(chunk * sample_rate_hz)): chunk for chunk in _CHUNKS_S}
        # Samples of streams that together fill one pass, whatever each of them brings.
        self.pass_samples = min(round(chunk * sample_rate_hz) * most_streams(each) for each, chunk in chunks.items())
        self._sizes = {each: _sizes(each, slots) for each in sorted(chunks)} if self._fill else {}
        self._plan = Plan(self.reach, self._framing, list(self._sizes), _MOST_OF_ONE)
        with torch.inference_mode():
            self.slots = Slots(slots + 1, self.device, numbers=len(Places._fields))
            with self.slots.in_use(1) as spare:  # of rows that fill up a pass
                self._spare = spare[0]
            self._passes = Passes(
                shape, self._framing, self.reach, banks, Marker(nets, self.slots, self.precision), self.slots,
                symbols=torch.tensor(key_symbols(check_key(key, shape.key_bytes)), device=self.device),
                strength=10 ** (-sdr_db / 20),
                level=level or FixedLevel(),
                columns_per_second=columns_per_second,
                kept_samples=self.reach.kept(self.lookahead_samples, self._plan.most_columns),
                most_columns=self._plan.most_columns,
            )  # fmt: skip
        self._turn = threading.Lock()  # passes that are filled up share what they are given, and their memory
        self._graphs = PassGraphs(self._run, self.device, self._sizes) if graphs and self._fill else None
        self._moved = 0  # times that the slots had when passes were captured

    @property
    def lookahead_samples(self) -> int:
        """Most samples that a stream holds back: one comes out at the latest when so many follow it.

        A sample lies in columns up to N_FFT ahead, each depends on `reach` further columns, and the
        two resamplers reach half a filter ahead.
        """
        shape = self.hparams
        columns = shape.n_fft + shape.reach * shape.hop_length
        ahead = (columns + self._outward.half) * self.sample_rate_hz / shape.sample_rate_hz + self._inward.half
        return math.ceil(ahead)

    @property
    def first_samples(self) -> int:
        """Fewest samples for which a stream's first pass is worth its turn. On a GPU, where a pass costs mostly its
        turn: those with which the first marked sample comes out. Else 1: there a pass costs its columns, and those
        that are computed while more audio is on its way need not be waited for later."""
        return self.reach.first_samples if self._fill else 1

    @property
    def captured(self) -> int:
        """How many passes are captured."""
        return 0 if self._graphs is None else self._graphs.captured

    def open(self) -> EmbedStream:
        """A new stream."""
        return EmbedStream(self)

    @torch.inference_mode()
    def warm_up(self, recorder: Recorder | None = None) -> None:
        """Have every pass ready that the first streams would otherwise wait for.

        recorder: what captures passes, on a device that is not CUDA's.
        """
        if not self._fill:
            return
        with self.slots.in_use(), on_device(self.device), self._turn:
            if self._graphs is not None and (recorder is not None or self.device.type == "cuda"):
                try:
                    self._graphs.capture(self._idle, recorder)
                    self._moved = self.slots.moved
                except RuntimeError as error:  # marking goes on without them
                    self._graphs.drop()
                    log.warning(
                        "marking on %s without graphs, which takes several times as long: %s", self.device, error
                    )
            for columns, sizes in self._sizes.items():
                for streams in sizes:
                    for _ in range(2):  # one that is gathered while another computes: memory on the host for both
                        self._filled(self._idle(columns, streams), columns, streams, streams)
            if self.device.type == "cuda":
                torch.cuda.synchronize()

    def embed(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """A whole clip [n] → marked [n]."""
        stream = self.open()
        return np.concatenate([stream.push(samples), stream.finish()])

    @torch.inference_mode()
    def advance(
        self, pieces: Sequence[tuple[EmbedStream, NDArray[np.float32] | None]]
    ) -> list[NDArray[np.float32] | Exception]:
        """Advance different streams of this embedder together.

        pieces: stream and its next samples [n], None to finish it.
        Returns: for each what `push` or `finish` returns or raises; a stream that fails fails alone.
        Raises: what a pass raises; all streams are then over.
        """
        results: list[NDArray[np.float32] | Exception] = [np.zeros(0, np.float32)] * len(pieces)
        taken: list[int] = []
        with np.errstate(over="ignore", invalid="ignore"):  # where streams look whether all is finite
            for index, (stream, samples) in enumerate(pieces):
                try:
                    stream.take(samples)
                    taken.append(index)
                except ValueError as error:
                    results[index] = error.with_traceback(None)  # which would keep all streams of the pass
        self._mark([pieces[index][0] for index in taken])
        for index in taken:
            try:
                results[index] = pieces[index][0].give()
            except RuntimeError as error:
                results[index] = error.with_traceback(None)
        return results

    def _mark(self, streams: list[EmbedStream]) -> None:
        """Begin all that is due, those of several streams together, and wait for it once."""
        fresh = [stream for stream in streams if stream.slot is None and stream.waiting]
        with _together(streams):
            # Once more, so that who has left gives its slot back before those who wait for one are called.
            with self.slots.in_use(len(fresh)) as slots, on_device(self.device), _together(streams):
                for stream, slot in zip(fresh, slots, strict=True):
                    stream.slot = slot
                with self._turn if self._fill else contextlib.nullcontext():
                    if self._graphs is not None and self.slots.moved != self._moved and self._graphs.captured:
                        log.warning("more streams than there was room for: marking goes on without graphs")
                        self._graphs.drop()
                    self.slots.clear(slots)
                    Places(*self.slots.places).end[slots] = FAR
                    begun = self._due([stream for stream in streams if stream.slot is not None])
                if begun and self.device.type == "cuda":
                    done = torch.cuda.Event(blocking=True)  # the thread sleeps until then, and others of Python's run
                    done.record()
                    done.synchronize()
            for each in begun:
                marked = each.marked.numpy()
                sound = (marked[:, -1] != 0).tolist()
                for stream, row, given, is_sound in zip(each.streams, marked, each.given, sound, strict=True):
                    if given:  # a copy: else a reader that lags keeps the memory of all that shared its pass
                        stream.add(row[:given].copy(), is_sound)

    def _due(self, streams: list[EmbedStream]) -> list[_Begun]:
        """Passes of all columns that are due."""
        if not streams:
            return []
        slots, waiting, finished = np.array([(each.slot, each.waiting, each.finished) for each in streams]).T
        places = Places(*self.slots.places[:, slots])
        begun = [
            self._begin([streams[member] for member in due.members], due.numbers, due.columns)
            for due in self._plan.due(slots, places, waiting, finished.astype(bool))
        ]
        self.slots.places[:, slots] = places
        return begun

    def _begin(self, streams: list[EmbedStream], numbers: Numbers, columns: int) -> _Begun:
        """One pass of `columns` columns, of which each stream brings some, or all if passes are not filled up."""
        count = len(streams)
        brought = numbers.received - numbers.heard
        size, most = count, int(brought.max())
        if self._fill:
            size, most = (
                next((size for size in self._sizes[columns] if size >= count), count),
                self.reach.most_samples(columns),
            )
        host = Given.of(size, most, pinned=self.device.type == "cuda")
        told = host.numbers.numpy()
        for row, each in zip(told, numbers, strict=True):
            row[:count] = each
        if size > count:
            told[:, count:] = self._plan.idle(self._spare, columns)[:, None]
        for row, stream, samples in zip(host.samples.numpy(), streams, brought.tolist(), strict=False):
            stream.feed(row[:samples])
        if self._fill:
            marked = self._filled(host, columns, size, count)
        else:
            given, inside = host.to(self.device), self._plan.within(numbers)
            marked = self._passes.run(given.numbers, given.samples, columns, mixed=False, inside=inside)
            marked = marked.to("cpu", non_blocking=True)
        return _Begun(streams, numbers.given.tolist(), marked)

    def _filled(self, host: Given, columns: int, size: int, count: int) -> Tensor:
        """A pass of `size` rows, and on the host, once it is over, what the first `count` of them give."""
        marked = self._run(host, columns) if self._graphs is None else self._graphs.run(host, columns, size)
        heard = torch.empty(count, marked.shape[1], pin_memory=self.device.type == "cuda")
        return heard.copy_(marked[:count], non_blocking=True)  # the next pass may write over it on the device

    def _run(self, given: Given, columns: int) -> Tensor:
        given = given.to(self.device)
        return self._passes.run(given.numbers, given.samples, columns)

    def _idle(self, columns: int, streams: int) -> Given:
        """A pass of nobody's."""
        given = Given.of(streams, self.reach.most_samples(columns), pinned=self.device.type == "cuda")
        given.numbers.numpy()[:] = self._plan.idle(self._spare, columns)[:, None]
        given.samples.zero_()
        return given


@contextlib.contextmanager
def _together(streams: Sequence[EmbedStream]) -> Iterator[None]:
    """Streams in passes. Where those fail nobody knows where the streams are: they are over."""
    try:
        yield
    except BaseException:
        for stream in streams:
            stream.close()
        raise
    finally:
        for stream in streams:
            stream.rest()


def _sizes(columns: int, slots: int) -> list[int]:
    """Streams that passes of so many columns are filled up to, with room for `slots` streams in all."""
    most = min(most_streams(columns), slots)
    return [size for size in _STREAMS if size < most] + [most]


def on_device(device: torch.device) -> contextlib.AbstractContextManager:
    """A thread of the pool may have another device current, on whose stream kernels would be launched."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
