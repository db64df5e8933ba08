"""Detect and DetectStream: clips in, what is found in them out. Imports no torch."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from csm.common.v1 import common_pb2
from csm.watermark.v1 import watermark_pb2
from google.protobuf.duration_pb2 import Duration
from opentelemetry import trace

from services.runtime import instruments
from services.runtime.admission import Admission, PendingStreams
from services.runtime.audio import (
    MAX_CHANNELS,
    MAX_CLIP_RATE_HZ,
    MAX_PEAK,
    MIN_RATE_HZ,
    AudioError,
    from_clip_bytes,
    sample_bytes,
)
from services.runtime.audio_clip import read_clip
from services.runtime.audio_file import KINDS, MAX_COMPRESSED_BYTES, CompressedFile, sniff
from services.runtime.errors import InvalidArgument
from services.runtime.pool import Pool
from services.runtime.request_reader import limit_idle
from services.runtime.sample_encodings import CLIP_ENCODING_NAMES, CLIP_ENCODINGS
from services.runtime.wav import WavDecoder, WavError
from services.watermark.key import check_key
from services.watermark.key_ring import Key

if TYPE_CHECKING:
    from services.watermark.detector import Detection, DetectionSession, Detector
    from services.watermark.findings import Mark

T = TypeVar("T")
_NOTHING = np.zeros((0, 1), np.float32)
_MAX_COMPRESSED_S = 86_400.0  # of a file that is kept until it is whole
_SNIFFED_BYTES = 4096  # of a file: two frames of any MP3


class DetectServicer:
    """What the servicer does for its Detect calls. searching: where the nets' work runs."""

    def __init__(
        self,
        detector: Detector,
        searching: Pool,
        admission: Admission,
        keys: Sequence[Key],
        *,
        max_clip_s: float,
        time_limit_s: float,
    ):
        """keys: looked for unless a call brings one, newest first. max_clip_s: of Detect. time_limit_s: of one search."""
        self._detector, self._searching, self._admission, self._keys = detector, searching, admission, keys
        self._max_clip_s, self._time_limit_s = max_clip_s, time_limit_s

    async def detect(self, request: watermark_pb2.DetectRequest) -> watermark_pb2.DetectResponse:
        """Raises: CallError."""
        began, labels = time.perf_counter(), _labels("Detect")
        keys = self._checked_keys(request.key if request.HasField("key") else None, "key")
        limit_s = self._limit_s(request.search, "search")
        with self._admission.enter():
            try:
                clip = await asyncio.to_thread(read_clip, request.audio, max_duration_s=self._max_clip_s)
            except AudioError as error:
                raise InvalidArgument(f"audio.{error.field}", error.description) from None
            samples = clip.samples if clip.channels is None else clip.channels.T
            left = threading.Event()  # the caller is gone: the search ends after the pass it is in
            try:
                detection, seconds = await self._run(
                    lambda: self._detector.detect(
                        samples,
                        clip.sample_rate_hz,
                        [key.secret for key in keys],
                        left.is_set,
                        speeds=request.search.speeds,
                        time_limit_s=limit_s,
                    ),
                    labels,
                )
            finally:
                left.set()
        instruments.stage_first_output.record(time.perf_counter() - began, labels)
        return _response(detection, seconds, keys)

    async def detect_stream(
        self, pending: PendingStreams, requests: AsyncIterator[watermark_pb2.DetectStreamRequest]
    ) -> AsyncIterator[watermark_pb2.DetectStreamResponse]:
        """Raises: CallError."""
        labels = _labels("DetectStream")
        first = await pending.first_message(requests)
        if first is None or first.WhichOneof("event") != "start":
            raise InvalidArgument("event", "the first message must be start")
        start = first.start
        audio = _PcmAudio(start.format) if start.HasField("format") else _FileAudio()
        keys = self._checked_keys(start.key if start.HasField("key") else None, "start.key")
        limit_s = self._limit_s(start.search, "start.search")
        with self._admission.enter():
            left, seconds = threading.Event(), 0.0
            session: DetectionSession | None = None
            yield watermark_pb2.DetectStreamResponse(started=watermark_pb2.DetectStarted())
            try:
                async for samples in _samples(audio, requests):
                    if session is None:
                        session = self._detector.open(
                            audio.sample_rate_hz,
                            samples.shape[1],
                            [key.secret for key in keys],
                            left.is_set,
                            speeds=start.search.speeds,
                            time_limit_s=limit_s,
                        )
                    if session.add(samples):
                        limit_idle(requests, time.monotonic() + limit_s)  # nothing is read while a piece is searched
                        _, passed = await self._run(session.search, labels)
                        limit_idle(requests, time.monotonic())
                        seconds += passed
                        yield watermark_pb2.DetectStreamResponse(progress=_progress(session, keys))
                        if session.limited and audio.is_kept:
                            break  # hours of silence fit into a small file: no more of it is decoded
                if session is None:
                    raise InvalidArgument("audio.data", "holds no samples")
                detection, passed = await self._run(session.finish, labels)
            finally:
                left.set()
                audio.close()
            yield watermark_pb2.DetectStreamResponse(finished=_response(detection, seconds + passed, keys))

    def _checked_keys(self, key: bytes | None, field: str) -> Sequence[Key]:
        """Those to look for. The caller's own has no id."""
        if key is None:
            return self._keys
        try:
            return [Key("", check_key(key, len(self._keys[0].secret)))]
        except ValueError as error:
            raise InvalidArgument(field, str(error).removeprefix("key ")) from None

    def _limit_s(self, search: common_pb2.WatermarkSearch, field: str) -> float:
        if not search.HasField("time_limit"):
            return self._time_limit_s
        seconds = search.time_limit.seconds + search.time_limit.nanos / 1e9
        if not 0 < seconds <= self._time_limit_s:
            raise InvalidArgument(
                f"{field}.time_limit", f"must be above 0 and at most {self._time_limit_s:g} s, not {seconds:g} s"
            )
        return seconds

    async def _run(self, work: Callable[[], T], labels: dict[str, str]) -> tuple[T, float]:
        """The result of `work` in a thread of the pool, and the seconds that it took."""
        asked = time.perf_counter()
        result, seconds = await self._searching.run(work)
        instruments.stage_chunk.record(seconds, labels)
        instruments.stage_queue.record(max(0.0, time.perf_counter() - asked - seconds), labels)
        return result, seconds


async def _samples(
    audio: _PcmAudio | _FileAudio, requests: AsyncIterator[watermark_pb2.DetectStreamRequest]
) -> AsyncIterator[np.ndarray]:
    """Of all requests after the first, [n, channels], n ≥ 1. Raises: InvalidArgument."""
    async for request in requests:
        if request.WhichOneof("event") != "audio":
            raise InvalidArgument("event", "every message after start must be audio")
        if len(samples := audio.decode(request.audio.data)):
            yield samples
    while len(samples := await asyncio.to_thread(audio.rest)):
        yield samples


class _PcmAudio:
    """Samples of a stated format."""

    is_kept = False

    def __init__(self, form: common_pb2.AudioFormat):
        """Raises: InvalidArgument."""
        channels = form.channels if form.HasField("channels") else 1
        if form.encoding not in CLIP_ENCODINGS:
            raise InvalidArgument("start.format.encoding", f"must be {CLIP_ENCODING_NAMES}")
        _check_sizes("start.format.", form.sample_rate_hz, channels)
        self._encoding, self._channels = CLIP_ENCODINGS[form.encoding], channels
        self.sample_rate_hz = form.sample_rate_hz

    def decode(self, data: bytes) -> np.ndarray:
        """Samples [n, channels]. Raises: InvalidArgument."""
        group = self._channels * sample_bytes(self._encoding)
        if len(data) % group:
            text = f"{len(data)} bytes is no whole number of {group}-byte sample groups"
            raise InvalidArgument("audio.data", text)
        return _checked_peak(from_clip_bytes(data, self._encoding).reshape(-1, self._channels))

    def rest(self) -> np.ndarray:
        """The audio has ended."""
        return _NOTHING

    def close(self) -> None:
        """Nothing is held."""


class _FileAudio:
    """A file. WAV is decoded as it comes, other kinds when they are whole."""

    def __init__(self) -> None:
        self._kind: str | None = None  # until there is enough to see it
        self._data = bytearray()  # of a file that is not decoded yet
        self._wav: WavDecoder | None = None
        self._compressed: CompressedFile | None = None
        self._ended = False
        self.sample_rate_hz = 0

    @property
    def is_kept(self) -> bool:
        """Whether all of it has come and waits here to be decoded."""
        return self._compressed is not None

    def decode(self, data: bytes) -> np.ndarray:
        """The next bytes of the file → samples [n, channels]. Raises: InvalidArgument."""
        if self._wav is not None:
            return self._decode_wav(self._wav, data)
        self._data += data
        if self._kind is None and len(self._data) >= _SNIFFED_BYTES and len(samples := self._look()):
            return samples
        if len(self._data) > MAX_COMPRESSED_BYTES:
            limit = f"{MAX_COMPRESSED_BYTES / 1e6:.0f} MB"
            raise InvalidArgument("audio.data", f"a {self._kind} file is taken up to {limit}; a WAV has no limit")
        return _NOTHING

    def rest(self) -> np.ndarray:
        """The file has ended: a second of what is not decoded yet, nothing at last. Raises: InvalidArgument."""
        if self._kind is None and len(samples := self._look()):
            return samples
        try:
            if self._wav is not None:
                if not self._ended:
                    self._ended = True
                    self._wav.finish()
                return _NOTHING
            if self._compressed is None:
                data, self._data = bytes(self._data), bytearray()
                self._compressed = CompressedFile(data, max_duration_s=_MAX_COMPRESSED_S, max_bytes=math.inf)
                self.sample_rate_hz = self._compressed.sample_rate_hz
            return _checked_peak(self._compressed.next_block())
        except WavError as error:
            raise InvalidArgument("audio.data", str(error)) from None
        except AudioError as error:
            raise InvalidArgument("audio.data", error.description) from None

    def close(self) -> None:
        """Let go of the decoder."""
        if self._compressed is not None:
            self._compressed.close()

    def _look(self) -> np.ndarray:
        """What kind it is; of a WAV the samples so far."""
        self._kind = sniff(bytes(self._data[:_SNIFFED_BYTES]))
        if self._kind not in ("", "wav"):
            return _NOTHING
        if not self._kind and len(self._data):
            raise InvalidArgument("audio.data", f"is no {KINDS} file")
        self._wav = WavDecoder()
        data, self._data = bytes(self._data), bytearray()
        return self._decode_wav(self._wav, data)

    def _decode_wav(self, decoder: WavDecoder, data: bytes) -> np.ndarray:
        try:
            samples = decoder.feed(data)
        except WavError as error:
            raise InvalidArgument("audio.data", str(error)) from None
        if decoder.info is not None and not self.sample_rate_hz:
            self.sample_rate_hz = decoder.info.sample_rate_hz
            _check_sizes("audio.data: ", self.sample_rate_hz, decoder.info.channels)
        return _checked_peak(samples)


def _check_sizes(prefix: str, sample_rate_hz: int, channels: int) -> None:
    field = prefix.removesuffix(": ")
    if not MIN_RATE_HZ <= sample_rate_hz <= MAX_CLIP_RATE_HZ:
        where = f"{prefix}sample_rate_hz" if prefix.endswith(".") else field
        raise InvalidArgument(where, f"must be {MIN_RATE_HZ} to {MAX_CLIP_RATE_HZ} Hz, not {sample_rate_hz} Hz")
    if not 1 <= channels <= MAX_CHANNELS:
        where = f"{prefix}channels" if prefix.endswith(".") else field
        raise InvalidArgument(where, f"must have 1 to {MAX_CHANNELS} channels, not {channels}")


def _checked_peak(samples: np.ndarray) -> np.ndarray:
    peak = float(np.max(np.abs(samples), initial=0.0))  # NaN when any sample is
    if not peak <= MAX_PEAK:
        raise InvalidArgument("audio.data", f"float samples must be finite and lie in [-1, 1], found {peak:g}")
    return samples


def _labels(method: str) -> dict[str, str]:
    return {"stage": "watermark", "rpc.method": f"csm.watermark.v1.WatermarkService/{method}"}


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def _marks(marks: Sequence[Mark], keys: Sequence[Key]) -> list[common_pb2.WatermarkMark]:
    return [
        common_pb2.WatermarkMark(
            start=_duration(mark.start_s),
            end=_duration(mark.end_s),
            channel=mark.channel,
            confidence=mark.confidence,
            threshold=mark.threshold,
            speed=mark.speed,
            keeps_pitch=mark.keeps_pitch,
            key_id=keys[mark.key].id,
        )
        for mark in marks
    ]


def _progress(session: DetectionSession, keys: Sequence[Key]) -> watermark_pb2.DetectProgress:
    return watermark_pb2.DetectProgress(searched=_duration(session.searched_s), marks=_marks(session.marks, keys))


def _response(detection: Detection, seconds: float, keys: Sequence[Key]) -> watermark_pb2.DetectResponse:
    trace.get_current_span().set_attributes({"csm.found": detection.found, "csm.audio_s": detection.duration_s})
    return watermark_pb2.DetectResponse(
        found=detection.found,
        confidence=detection.confidence,
        threshold=detection.threshold,
        decoded_key=detection.decoded_key,
        position=None if detection.position_s is None else _duration(detection.position_s),
        compute_duration=_duration(seconds),
        marks=_marks(detection.marks, keys),
        key_id=keys[detection.marks[0].key].id if detection.marks else "",
        verdict=common_pb2.WatermarkVerdict.Value(f"WATERMARK_VERDICT_{detection.verdict.name}"),
        searched=_duration(detection.searched_s),
        limited=detection.limited,
    )
