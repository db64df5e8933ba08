"""Mark streaming audio: as many samples out as in, delayed by a fixed look-ahead.

A stream is resampled to the model's rate and cut into STFT columns; each column's mark (a magnitude to
subtract, bin by bin) is computed from the columns around it. The mark alone is transformed back, resampled to
the stream's rate and added to the original samples, so the audio itself is never resampled. The result does not
depend on how the stream was cut, nor on the other streams of its passes. A pass marks many streams at once, on
the nets' device and on state in pools (passes.py, embed_pass.py, state_pool.py); on the host a stream is a few
integers, computed for all streams of a pass at once (planner.py).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from services.engine.graphs import on_device
from services.watermark.embed_pass import EmbedPass
from services.watermark.graphs import Recorder
from services.watermark.kernels import PRECISIONS
from services.watermark.key import check_key, key_symbols
from services.watermark.level import FixedLevel, Level
from services.watermark.marker import Marker
from services.watermark.opening import FADE_S, Opening
from services.watermark.passes import Passes, StartedPass, batch_buckets
from services.watermark.planner import OPEN_LENGTH, PassPlanner, StreamPosition, max_streams
from services.watermark.receptive_field import ReceptiveField
from services.watermark.resampler import FilterBank, polyphase_filter
from services.watermark.spectrum import Framing
from services.watermark.state_pool import StatePool
from services.watermark.stream import Checkpoint, EmbedStream
from services.watermark.weights import Nets

_MAX_POWER = 16.0  # of what the service takes: MAX_PEAK of runtime.audio, squared
_MAX_EAGER_COLUMNS = 32  # of one stream in a pass that is not padded
MAX_OPENING_S = 1.0
_CHUNKS_S = (0.08, 0.16, 0.32, 0.64)  # usual chunk lengths; a pass on a GPU has one of these lengths


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
        pad: bool | None = None,
        graphs: bool = True,
        precision: str | None = None,
        opening_s: float = 0.0,
    ):
        """
        key: the message, exactly `nets.hparams.key_bytes` bytes.
        sample_rate_hz: of the streams; the model's may differ.
        message_sdr_db: the mark's power below the level's, before the part that quiet bins cannot give is
            left out; default: the model's.
        level: default FixedLevel().
        slots: streams to allocate state for at the start.
        pad: whether passes are padded to few sizes; None: on CUDA.
        graphs: whether warm_up() captures those sizes on CUDA.
        precision: of the nets' products, one of kernels.PRECISIONS; default: fp32 on the CPU, tf32 on CUDA.
            Sets cuDNN's process-wide TF32 switch.
        opening_s: seconds of a stream that are given before its look-ahead has come (opening.py), at most
            MAX_OPENING_S; 0: none.

        Raises: ValueError when key, SDR, precision or opening is out of bounds.
        """
        shape = nets.hparams
        sdr_db = shape.message_sdr_db if message_sdr_db is None else message_sdr_db
        if not 0 <= sdr_db <= 100:
            raise ValueError(f"message_sdr_db is {sdr_db}, must be between 0 and 100")
        if not 0 <= opening_s <= MAX_OPENING_S:
            raise ValueError(f"opening_s is {opening_s}, must be between 0 and {MAX_OPENING_S}")
        self.hparams = shape
        self.opening_samples = round(opening_s * sample_rate_hz)
        self.sample_rate_hz = sample_rate_hz
        self.device = next(nets.enc_c.parameters()).device
        is_cuda = self.device.type == "cuda"
        self.precision = precision or ("tf32" if is_cuda else "fp32")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {precision!r}, must be one of {', '.join(PRECISIONS)}")
        if is_cuda and self.precision != "fp16":
            torch.backends.cudnn.allow_tf32 = self.precision == "tf32"
        self._framing = Framing(shape.n_fft, shape.hop_length, self.device)
        model_hz = shape.sample_rate_hz
        filters = (polyphase_filter(sample_rate_hz, model_hz), polyphase_filter(model_hz, sample_rate_hz))
        banks = (FilterBank(filters[0], self.device), FilterBank(filters[1], self.device))
        self._inward, self._outward = banks
        self.receptive_field = ReceptiveField(shape, self._framing, filters, banks)
        columns_per_second = shape.sample_rate_hz / shape.hop_length
        self._pad = is_cuda if pad is None else pad
        chunks = {self.receptive_field.max_columns(round(chunk * sample_rate_hz)): chunk for chunk in _CHUNKS_S}
        # Samples of all streams that fill one pass, at the least favourable chunk length.
        self.pass_samples = min(round(chunk * sample_rate_hz) * max_streams(each) for each, chunk in chunks.items())
        self._buckets = {each: batch_buckets(each, slots) for each in sorted(chunks)} if self._pad else {}
        self._planner = PassPlanner(self.receptive_field, self._framing, list(self._buckets), _MAX_EAGER_COLUMNS)
        with torch.inference_mode():
            self.state = StatePool(slots + 1, self.device, position_fields=len(StreamPosition._fields))
            with self.state.pass_slots(1) as reserved:
                padding_slot = reserved[0]
            self._pass = EmbedPass(
                shape, self._framing, self.receptive_field, banks,
                Marker(nets, self.state, self.precision, padding_slot=padding_slot), self.state,
                symbols=torch.tensor(key_symbols(check_key(key, shape.key_bytes)), device=self.device),
                strength=10 ** (-sdr_db / 20),
                level=level or FixedLevel(),
                columns_per_second=columns_per_second,
                history_samples=self.receptive_field.history_samples(self.lookahead_samples, self._planner.max_columns),
                max_columns=self._planner.max_columns,
            )  # fmt: skip
        self._passes = Passes(
            self._pass, self._planner, self.receptive_field, self.state, self.device,
            padding_slot=padding_slot, buckets=self._buckets, graphs=graphs,
        )  # fmt: skip

    @property
    def lookahead_samples(self) -> int:
        """Most samples that a stream holds back: a sample is returned at the latest when this many follow it.

        A sample lies in columns up to N_FFT ahead, each depends on `context_columns` further columns, and the
        two resamplers look half a filter ahead.
        """
        shape = self.hparams
        columns = shape.n_fft + shape.context_columns * shape.hop_length
        ahead = (columns + self._outward.half) * self.sample_rate_hz / shape.sample_rate_hz + self._inward.half
        return math.ceil(ahead)

    @property
    def first_samples(self) -> int:
        """Fewest samples of a stream that are worth anything: those of its opening, or else of its first pass."""
        return self.opening_samples or self._first_pass_samples

    @property
    def _first_pass_samples(self) -> int:
        """Fewest samples worth the first pass of a stream's own mark. On a GPU, where a pass has a fixed cost: those that
        yield the first marked sample. On the CPU 1: a pass costs its columns, and columns computed while more audio is
        on its way shorten the later wait."""
        return self.receptive_field.first_samples if self._pad else 1

    @property
    def captured(self) -> int:
        """Captured passes."""
        return self._passes.captured

    @property
    def eager_passes(self) -> int:
        """Passes since the warm-up for which there was no graph, where one was wanted."""
        return self._passes.eager

    def open(self) -> EmbedStream:
        """A new stream."""
        return EmbedStream(self, first_needed=max(1, self.opening_samples))

    def open_at(self, first_sample: int, first_marked_sample: int, columns: int, power_sum: float) -> EmbedStream:
        """A stream that goes on at a checkpoint: its samples come from there on, and so do the marked ones.

        Raises: ValueError when no stream of this embedder could have given that checkpoint.
        """
        origin = Checkpoint(first_sample, first_marked_sample, columns, power_sum)
        sound = 0 <= columns < OPEN_LENGTH // 2 // self._framing.hop and 0 <= power_sum <= columns * _MAX_POWER
        if not sound or self.checkpoint(columns, power_sum) != origin:
            raise ValueError("is none that this model's streams give")
        return EmbedStream(self, origin, int(self.receptive_field.min_samples(columns)) - first_sample)

    def checkpoint(self, columns: int, power_sum: float) -> Checkpoint | None:
        """Where a stream can begin of which `columns` columns, with that power, are known; None near its beginning."""
        field = self.receptive_field
        first_sample = field.window_start(columns)
        first_marked = field.first_exact_sample(columns)
        if columns < field.warmup_columns or first_sample < 0 or first_marked < self.opening_samples:
            return None
        return Checkpoint(first_sample, first_marked, columns, power_sum)

    @torch.inference_mode()
    def warm_up(self, recorder: Recorder | None = None) -> None:
        """Prepare every pass size, so that the first streams do not wait for it.

        recorder: what captures passes on a device other than CUDA.
        """
        with self.state.pass_slots(), on_device(self.device):
            self._passes.warm_up(recorder)

    def embed(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """A whole clip [n] → marked [n]."""
        stream = self.open()
        return np.concatenate([stream.push(samples), stream.finish()])

    @torch.inference_mode()
    def advance(
        self, items: Sequence[tuple[EmbedStream, NDArray[np.float32] | None]]
    ) -> list[NDArray[np.float32] | Exception]:
        """Advance different streams of this embedder together.

        items: stream and its next samples [n]; None finishes the stream.
        Returns: for each what `push` or `finish` returns or raises; a stream that fails fails alone. What is marked
            keeps the memory of its whole pass: copy what is to stay.
        Raises: what a pass raises; all streams are then over.
        """
        results: list[NDArray[np.float32] | Exception] = [np.zeros(0, np.float32)] * len(items)
        accepted: list[int] = []
        with np.errstate(over="ignore", invalid="ignore"):  # `accept` tests whether all is finite
            for index, (stream, samples) in enumerate(items):
                try:
                    stream.accept(samples)
                    accepted.append(index)
                except ValueError as error:
                    results[index] = error.with_traceback(None)  # a traceback would keep all streams of the pass
        self._mark([items[index][0] for index in accepted])
        for index in accepted:
            try:
                results[index] = items[index][0].take_marked()
            except RuntimeError as error:
                results[index] = error.with_traceback(None)
        return results

    def _mark(self, streams: list[EmbedStream]) -> None:
        """Start every pass that is due, and take what each gives while the device computes those after it."""
        new = [stream for stream in streams if stream.wants_slot]
        with _in_pass(streams):
            # Nested, so that closed streams release their slots before threads that wait for slots are woken.
            with self.state.pass_slots(len(new)) as slots, on_device(self.device), _in_pass(streams):
                for stream, slot in zip(new, slots, strict=True):
                    stream.slot = slot
                self._passes.drop_stale_graphs()
                self._clear(slots)
                started = self._start_openings(new)
                self._resume(new)
                started += self._start_due([stream for stream in streams if self._is_due(stream)])
                for each in started:
                    each.collect()

    def _clear(self, slots: Sequence[int]) -> None:
        """Put slots where a stream begins."""
        self.state.clear(slots)
        StreamPosition(*self.state.positions).length[slots] = OPEN_LENGTH

    def _start_openings(self, new: Sequence[EmbedStream]) -> list[StartedPass]:
        """Start the passes of new streams' openings, in the slots that the streams then begin in."""
        if not (size := self.opening_samples):
            return []
        fade = min(round(FADE_S * self.sample_rate_hz), size // 2)
        begun = [stream for stream in new if stream.origin is None and stream.pending >= size]
        openings = [stream.open_with(size, fade) for stream in begun]
        started = self._start_due(openings)
        self._clear([opening.slot for opening in openings])
        return started

    def _is_due(self, stream: EmbedStream) -> bool:
        """Whether the stream's samples are worth a pass of its own mark. After an opening its first ones wait for more;
        without one they come when there are enough (first_samples)."""
        waits = self.opening_samples and not (stream.columns or stream.finished or stream.origin is not None)
        return stream.slot is not None and (not waits or stream.pending >= self._first_pass_samples)

    def _resume(self, streams: Sequence[EmbedStream]) -> None:
        """Put new streams that begin at a checkpoint where an undisturbed stream is after that many columns."""
        position = StreamPosition(*self.state.positions)
        for stream in streams:
            if stream.slot is None or (origin := stream.origin) is None:
                continue
            samples = torch.empty(stream.first_needed)
            stream.fill(samples.numpy())
            self._pass.restore(stream.slot, origin.first_sample, samples, origin.power_sum)
            position.next_column[stream.slot] = origin.columns
            position.consumed[stream.slot] = origin.first_sample + len(samples)
            position.emitted[stream.slot] = origin.first_marked_sample

    def _start_due(self, streams: Sequence[EmbedStream | Opening]) -> list[StartedPass]:
        """Start the passes for all columns that are due."""
        if not streams:
            return []
        slots, pending, finished = np.array([(each.slot, each.pending, each.finished) for each in streams]).T
        position = StreamPosition(*self.state.positions[:, slots])
        started = [
            self._passes.start([streams[index] for index in planned.indices], planned)
            for planned in self._planner.plan(slots, position, pending, finished.astype(bool))
        ]
        self.state.positions[:, slots] = position
        return started


@contextlib.contextmanager
def _in_pass(streams: Sequence[EmbedStream]) -> Iterator[None]:
    """Runs passes of these streams. If one fails, their positions are unknown: they are closed."""
    try:
        yield
    except BaseException:
        for stream in streams:
            stream.close()
        raise
    finally:
        for stream in streams:
            stream.end_pass()
