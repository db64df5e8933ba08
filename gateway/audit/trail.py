"""Records of what was marked, and of a sample of them whether the mark is there."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
from csm.common.v1 import common_pb2
from csm.watermark.v1 import watermark_pb2
from opentelemetry import context as otel_context

from gateway.audit.sinks import EVENT, FileSink, OtlpSink, Record, Sink
from gateway.config import GatewaySettings
from gateway.speech.trace_id import trace_id
from gateway.stages import Stages
from services.runtime import instruments, telemetry
from services.runtime.audio import to_bytes
from services.runtime.errors import CallError, ResourceExhausted

log = logging.getLogger(__name__)
_KEPT_S = 20.0  # of an utterance whose mark is looked for
_MAX_KEPT = 8  # utterances at once: 15 MB of samples
_DETECT_S = 60.0
_CLOSE_S = 3.0  # for searches that run when the server stops
_BUSY_TRIES, _BUSY_WAIT_S = 5, 2.0
_CLEAR = {common_pb2.WATERMARK_VERDICT_FOUND: "found", common_pb2.WATERMARK_VERDICT_NOT_FOUND: "not_found"}

Detect = Callable[[np.ndarray], Awaitable[watermark_pb2.DetectResponse]]


class AuditTrail:
    """An async context manager: leaving it writes what waits. Without a sink it records nothing."""

    def __init__(self, sink: Sink | None, *, bundle: str, sample_rate_hz: int, share: float, detect: Detect):
        """share: of the utterances whose mark is looked for. detect: asks the watermark stage about samples [T]."""
        self._sink, self._bundle, self._share, self._detect = sink, bundle, share, detect
        self._max_samples = round(_KEPT_S * sample_rate_hz)
        self._kept = 0
        self._one_search = asyncio.Semaphore(1)  # callers' own searches come first
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    def of(cls, settings: GatewaySettings, stages: Stages) -> AuditTrail:
        """As the settings say. Raises: SettingError."""
        sink: Sink | None = None
        if settings.audit_log == "otlp":
            sink = OtlpSink(telemetry.log_provider("gateway"))
        elif settings.audit_log:
            sink = FileSink(settings.audit_log)
        rate_hz = stages.identity.sample_rate_hz

        async def detect(samples: np.ndarray) -> watermark_pb2.DetectResponse:
            form = common_pb2.AudioFormat(
                encoding=common_pb2.AUDIO_ENCODING_PCM_F32LE, sample_rate_hz=rate_hz, channels=1
            )
            clip = common_pb2.AudioClip(raw=common_pb2.RawAudio(format=form, data=to_bytes(samples, "f32le")))
            request = watermark_pb2.DetectRequest(audio=clip)
            answer: watermark_pb2.DetectResponse = await stages.watermark.unary(
                "Detect", request, timeout=lambda: _DETECT_S, rename=lambda field: field
            )
            return answer

        share = settings.audit_verify
        return cls(sink, bundle=stages.identity.bundle_id, sample_rate_hz=rate_hz, share=share, detect=detect)

    async def __aenter__(self) -> AuditTrail:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_S)
        for task in self._tasks:
            task.cancel()  # its record is written, without a verdict
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._sink is not None:
            await asyncio.to_thread(self._sink.close)

    def begin(self, *, token: str, voice: str, speaker: int) -> AuditEntry | None:
        """The entry of an utterance that begins, inside its call's span; None where nothing is recorded."""
        if self._sink is None:
            return None
        facts = {"token": token, "voice": voice or None, "speaker": speaker, "trace_id": trace_id()}
        return AuditEntry(self, facts, self._max_samples if random.random() < self._share else 0)

    def try_keep(self) -> bool:
        """Whether there is room for the samples of one more utterance. If so, `close` is to be called with them."""
        has_room = self._kept < _MAX_KEPT
        self._kept += has_room
        return has_room

    def close(self, facts: Record, samples: np.ndarray | None) -> None:
        """Write a record; with samples, once their mark was looked for. To be called once for each entry."""
        if samples is None:
            self._write(facts | {"verified": None})
            return
        task = asyncio.get_running_loop().create_task(self._verify(facts, samples))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _verify(self, facts: Record, samples: np.ndarray) -> None:
        # A trace of its own: the request's has ended.
        otel_context.attach(otel_context.Context())
        result, confidence = "failed", None
        try:
            async with self._one_search:
                answer = await self._search(samples)
            result, confidence = _CLEAR.get(answer.verdict, "unsure"), round(answer.confidence, 4)
            if result == "not_found":
                log.error("audit trail: the mark of an utterance was not found", extra={"trace": facts["trace_id"]})
        except CallError as error:
            log.warning("audit trail: a mark could not be looked for: %s", error)
        finally:
            self._kept -= 1
            instruments.audit_verifications.add(1, {"result": result})
            self._write(facts | {"verified": result, "confidence": confidence})

    async def _search(self, samples: np.ndarray) -> watermark_pb2.DetectResponse:
        """Tried again while the stage is busy with callers' searches. Raises: CallError."""
        for _ in range(_BUSY_TRIES - 1):
            try:
                return await self._detect(samples)
            except ResourceExhausted:
                await asyncio.sleep(_BUSY_WAIT_S)
        return await self._detect(samples)

    def _write(self, facts: Record) -> None:
        time_ns = time.time_ns()
        written = datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="milliseconds")
        if self._sink is not None:
            self._sink.write({"time": written, "event": EVENT, "bundle": self._bundle, **facts}, time_ns)


class AuditEntry:
    """One utterance or turn on its way."""

    def __init__(self, trail: AuditTrail, facts: Record, max_samples: int):
        """max_samples: kept for the search for its mark; 0: it is none of the sample."""
        self._trail, self._facts, self._max_samples = trail, facts, max_samples
        self._pieces: list[np.ndarray] = []
        self._count = 0
        self._key_ids: list[str] = []

    def add_key(self, key_id: str) -> None:
        """A stage marks with that key. Of an utterance resumed in the middle of a rotation there are two."""
        if key_id and key_id not in self._key_ids:
            self._key_ids.append(key_id)

    def add_audio(self, samples: np.ndarray) -> None:
        """Marked audio [T] on its way to the caller."""
        if self._max_samples and not self._pieces and not self._trail.try_keep():
            self._max_samples = 0
        if self._count < self._max_samples:
            self._pieces.append(samples[: self._max_samples - self._count])
            self._count += len(self._pieces[-1])

    def close(self, **facts: Any) -> None:
        """It ended, however. audio_s is among the facts: without audio there is no record."""
        if facts["audio_s"] > 0:
            samples = np.concatenate(self._pieces) if self._pieces else None
            self._trail.close(self._facts | {"key_ids": self._key_ids, **facts}, samples)
