"""BackboneService over the engine. Imports no torch."""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import AsyncIterator, Callable

import grpc
from csm.backbone.v1 import backbone_pb2, backbone_pb2_grpc
from csm.common.v1 import common_pb2
from opentelemetry import trace

from models.bundle import Bundle
from services.backbone.chunk_messages import ChunkMessages
from services.backbone.engine import Engine, EngineStopped, Load
from services.backbone.frame_stream import FrameStream, StreamAborted
from services.backbone.messages import (
    FINISH_REASONS,
    finished_message,
    prompt_tokens,
    read_chunk_policy,
    read_prompt,
    read_sampling,
    started_message,
)
from services.backbone.prompt import PromptLimits
from services.backbone.request import FinishReason, Request, Sampling
from services.backbone.scheduler import QueueFull
from services.backbone.step_telemetry import StepTelemetry
from services.runtime import instruments
from services.runtime.errors import CallError, ResourceExhausted, UnavailableError
from services.runtime.identity import identity
from services.runtime.version import version

_GENERATE = {"stage": "backbone", "rpc.method": "csm.backbone.v1.BackboneService/Generate"}
_MAX_INLINE_TOKENS = 64
_tracer = trace.get_tracer("csm.backbone")
_LOAD: dict[str, Callable[[Load], int]] = {
    "slots.active": lambda load: load.slots_active,
    "slots.capacity": lambda load: load.slots_capacity,
    "queue.depth": lambda load: load.queue_depth,
    "queue.capacity": lambda load: load.queue_capacity,
    "blocks.used": lambda load: load.blocks_used,
    "blocks.idle": lambda load: load.blocks_idle,
    "blocks.capacity": lambda load: load.blocks_capacity,
    "prompt.tokens": lambda load: load.prompt_tokens,
    "prompt.prefix_hit_tokens": lambda load: load.prefix_hit_tokens,
}


class BackboneServicer(backbone_pb2_grpc.BackboneServiceServicer):
    """One generation of the engine for each Generate."""

    def __init__(
        self, bundle: Bundle, engine: Engine, *, max_frames: int, device: str, dtype: str, trace_steps: int = 0
    ):
        """trace_steps: every Nth step of the engine becomes a span; 0 is none."""
        self._bundle, self._engine = bundle, engine
        self._max_frames, self._device, self._dtype = max_frames, device, dtype
        self._limits = PromptLimits(
            codebooks=bundle.codebooks,
            text_vocab_size=bundle.generator.text_vocab_size,
            codec_bins=bundle.codec_bins,
            max_seq_len=bundle.generator.backbone.max_seq_len,
        )
        self._chunk_messages = ChunkMessages(bundle.codebooks, bundle.codec_bins)
        for name, value in _LOAD.items():
            instruments.observe(engine, f"csm.backbone.{name}", functools.partial(_load_value, value))
        engine.on_step = StepTelemetry(trace_steps)

    async def Generate(  # type: ignore[override]  # chunks are serialized already
        self, request: backbone_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[backbone_pb2.GenerateResponse | bytes]:
        began = time.perf_counter()
        sampling = read_sampling(request)
        sizer = read_chunk_policy(request.chunk_policy, 1 / self._bundle.frame_rate_hz)
        if prompt_tokens(request) > _MAX_INLINE_TOKENS:  # it takes milliseconds to check: not on the event loop
            engine_request = await asyncio.to_thread(self._read, request, sampling, context.time_remaining())
        else:  # less than a thread takes to start on it beside a busy engine
            engine_request = self._read(request, sampling, context.time_remaining())
        stream = self._submit(engine_request)
        stream.span_context = trace.get_current_span().get_span_context()
        try:
            await stream.prefilled()
            started = started_message(stream.seq)
            numbers = {"csm.prompt_tokens": started.prompt_tokens, "csm.prefix_hit_tokens": started.prefix_hit_tokens}
            trace.get_current_span().set_attributes(numbers)
            yield backbone_pb2.GenerateResponse(started=started)
            index = engine_request.generated_frames
            while True:
                waited = time.perf_counter()
                # Counted from this call on: the playback buffer of an earlier call is not known here.
                sent = index - engine_request.generated_frames
                frames = await stream.read(sizer.next_size(sent, waited, stream.ready_frames))
                if not frames:
                    break
                if index == engine_request.generated_frames:
                    instruments.stage_first_output.record(time.perf_counter() - began, _GENERATE)
                    trace.get_current_span().add_event("first_frame")
                instruments.stage_chunk.record(time.perf_counter() - waited, _GENERATE)
                yield self._chunk_messages(index, frames)
                index += len(frames)
            yield backbone_pb2.GenerateResponse(
                finished=finished_message(stream.seq, index - engine_request.generated_frames)
            )
        except StreamAborted as aborted:
            raise _status(aborted.finish) from None
        finally:
            stream.cancel()
            self._trace(stream)

    async def GetModelInfo(
        self, request: backbone_pb2.GetModelInfoRequest, context: grpc.aio.ServicerContext
    ) -> backbone_pb2.GetModelInfoResponse:
        return backbone_pb2.GetModelInfoResponse(
            bundle=identity(self._bundle),
            max_seq_len=self._limits.max_seq_len,
            text_vocab_size=self._limits.text_vocab_size,
            codec_bins=self._limits.codec_bins,
            device=self._device,
            dtype=self._dtype,
            max_frames=self._max_frames,
            version=version(),
        )

    async def GetLoad(
        self, request: backbone_pb2.GetLoadRequest, context: grpc.aio.ServicerContext
    ) -> backbone_pb2.GetLoadResponse:
        load = self._engine.load()
        response = backbone_pb2.GetLoadResponse(
            slots_active=load.slots_active,
            slots_capacity=load.slots_capacity,
            queue_depth=load.queue_depth,
            queue_capacity=load.queue_capacity,
            blocks_used=load.blocks_used,
            blocks_idle=load.blocks_idle,
            blocks_capacity=load.blocks_capacity,
            prompt_tokens=load.prompt_tokens,
            prefix_hit_tokens=load.prefix_hit_tokens,
        )
        response.frame_step_duration.FromNanoseconds(_ns(load.frame_step_s))
        return response

    def _read(self, request: backbone_pb2.GenerateRequest, sampling: Sampling, remaining_s: float | None) -> Request:
        """The engine's request. Raises: InvalidArgument."""
        prompt, max_frames = read_prompt(request, self._limits, self._max_frames)
        deadline_s = None if remaining_s is None else self._engine.now() + remaining_s
        return Request(
            prompt,
            sampling,
            max_frames,
            prompt.generated_frames,
            deadline_s,
            prefill_tokens=len(prompt.tokens),
            prefix_keys=prompt.prefix_keys(),
            held_back_frames=request.chunk_policy.held_back_frames,
        )

    def _submit(self, engine_request: Request) -> FrameStream:
        try:
            return self._engine.submit(engine_request)
        except QueueFull as full:
            raise ResourceExhausted(str(full), full.retry_after_s) from None
        except EngineStopped as stopping:
            raise UnavailableError(str(stopping)) from None

    def _trace(self, stream: FrameStream) -> None:
        """The reason of the end; spans and times of queue and prefill, which the engine measured."""
        seq = stream.seq
        if seq.finish in FINISH_REASONS:  # the other ends have a status
            name = common_pb2.FinishReason.Name(FINISH_REASONS[seq.finish])
            trace.get_current_span().set_attribute("csm.finish_reason", name)
        now_s, now_ns = self._engine.now(), time.time_ns()
        for name, histogram, start_s, end_s in (
            ("queue", instruments.backbone_queue, seq.submitted_s, seq.admitted_s),
            ("prefill", instruments.backbone_prefill, seq.admitted_s, seq.prefilled_s),
        ):
            if start_s is not None:
                end_s = end_s or seq.ended_s or now_s  # the request may have ended in between
                span = _tracer.start_span(name, start_time=now_ns - _ns(now_s - start_s))
                span.end(end_time=now_ns - _ns(now_s - end_s))
                histogram.record(end_s - start_s)


def _status(finish: FinishReason) -> CallError:
    """The status of a generation that did not end normally."""
    match finish:
        case FinishReason.DEADLINE:
            return CallError(grpc.StatusCode.DEADLINE_EXCEEDED, "deadline exceeded", reason="DEADLINE")
        case FinishReason.STALLED:
            return CallError(grpc.StatusCode.ABORTED, "frames were not read for too long", reason="READER_STALLED")
        case FinishReason.FAILED:
            return UnavailableError("the engine failed", "ENGINE_FAILED")
        case _:
            return UnavailableError("the server is stopping")


def _load_value(value: Callable[[Load], int], engine: Engine) -> int:
    return value(engine.load())


def _ns(seconds: float) -> int:
    return math.floor(seconds * 1e9)
