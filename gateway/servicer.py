"""SpeechService: the public face of the chain."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import grpc
from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2, speech_pb2_grpc
from csm.watermark.v1 import watermark_pb2
from opentelemetry import trace

from gateway.access import Access, Grant
from gateway.chain import AudioChunk, Started, Synthesis
from gateway.config import GatewaySettings
from gateway.lengths import frames_of_ms
from gateway.output import Output
from gateway.stages import StageInfo, Stages
from models.bundle import Bundle
from services.runtime import instruments
from services.runtime.admission import Admission
from services.runtime.errors import InvalidArgument, UnavailableError
from services.runtime.version import version

log = logging.getLogger(__name__)


class SpeechServicer(speech_pb2_grpc.SpeechServiceServicer):
    """Holds no state of a request beyond its call. access: to be among its server's interceptors."""

    def __init__(self, settings: GatewaySettings, bundle: Bundle, stages: Stages, ramp_frames: list[int]):
        """Raises: SettingError."""
        self.access = Access(settings)
        self._settings, self._bundle, self._stages, self._ramp = settings, bundle, stages, ramp_frames
        self._streams = Admission("utterances", settings.max_streams)
        self._verifications = Admission("verifications", settings.max_verifications)
        instruments.observe_admission(self._streams, "csm.gateway.streams")
        instruments.observe_admission(self._verifications, "csm.gateway.verifications")

    async def StreamSynthesize(
        self, request: speech_pb2.StreamSynthesizeRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[speech_pb2.StreamSynthesizeResponse]:
        with self.access.enter(len(request.utterance.text)) as grant, self._streams.enter():
            output, synthesis = self._begin(request.utterance, request.output, context)
            summary = speech_pb2.SpeechSummary()
            async with aclosing(synthesis.events()) as events:
                async for event in events:
                    if isinstance(event, Started):
                        _admit(summary, event, grant)
                        yield speech_pb2.StreamSynthesizeResponse(
                            started=speech_pb2.SpeechStarted(
                                format=output.format,
                                container=output.container,
                                seed=event.seed,
                                prompt_tokens=event.prompt_tokens,
                                trace_id=_trace_id(),
                            )
                        )
                        if header := output.header():
                            yield _audio(header)
                    elif data := self._write(synthesis, output, event):
                        yield _audio(data)
            if tail := output.finish():
                yield _audio(tail)
            self._finish(synthesis, output, summary)
            yield speech_pb2.StreamSynthesizeResponse(finished=speech_pb2.SpeechFinished(summary=summary))

    async def Synthesize(
        self, request: speech_pb2.SynthesizeRequest, context: grpc.aio.ServicerContext
    ) -> speech_pb2.SynthesizeResponse:
        with self.access.enter(len(request.utterance.text)) as grant, self._streams.enter():
            output, synthesis = self._begin(request.utterance, request.output, context)
            summary = speech_pb2.SpeechSummary()
            pieces: list[bytes] = []
            async with aclosing(synthesis.events()) as events:
                async for event in events:
                    if isinstance(event, Started):
                        _admit(summary, event, grant)
                    else:
                        pieces.append(self._write(synthesis, output, event))
            pieces.append(output.finish())
            self._finish(synthesis, output, summary)
            header = output.header(sum(map(len, pieces)))
            return speech_pb2.SynthesizeResponse(
                audio=b"".join([header, *pieces]),
                format=output.format,
                container=output.container,
                summary=summary,
                trace_id=_trace_id(),
            )

    async def VerifyWatermark(
        self, request: speech_pb2.VerifyWatermarkRequest, context: grpc.aio.ServicerContext
    ) -> speech_pb2.VerifyWatermarkResponse:
        with self.access.enter(), self._verifications.enter():
            info = self._ready()
            found = await self._stages.watermark.unary(
                "Detect",
                watermark_pb2.DetectRequest(audio=request.audio),
                timeout=self._timeout(context),
                rename=lambda field: field,
            )
            return speech_pb2.VerifyWatermarkResponse(
                found=found.found,
                confidence=found.confidence,
                threshold=found.threshold,
                position=found.position if found.HasField("position") else None,
                detectable=info.watermark_trained,
            )

    async def ListVoices(
        self, request: speech_pb2.ListVoicesRequest, context: grpc.aio.ServicerContext
    ) -> speech_pb2.ListVoicesResponse:
        return speech_pb2.ListVoicesResponse(
            bundle=self._stages.identity,
            description=self._bundle.description,
            trained=self._bundle.trained,
            voices=[
                speech_pb2.Voice(speaker=voice.speaker, name=voice.name, description=voice.description)
                for voice in self._bundle.voices
            ],
            max_seq_len=self._stages.info.max_seq_len if self._stages.info is not None else 0,
            version=version(),
        )

    def _begin(
        self,
        utterance: speech_pb2.Utterance,
        options: speech_pb2.OutputOptions,
        context: grpc.aio.ServicerContext,
    ) -> tuple[Output, Synthesis]:
        """Check what the gateway itself answers for; text, audio and sampling are checked by their stages."""
        trace.get_current_span().set_attributes(
            {
                "csm.bundle": self._bundle.id,
                "csm.text_characters": len(utterance.text),
                "csm.context_turns": len(utterance.context),
            }
        )
        if self._settings.log_text:
            for turn in [*utterance.context, utterance]:
                log.info("speaker %d: %s", turn.speaker, turn.text)
        self._ready()
        if len(utterance.context) > self._settings.max_context_turns:
            raise InvalidArgument(
                "utterance.context",
                f"has {len(utterance.context)} turns, at most {self._settings.max_context_turns} are taken",
            )
        output = Output(options, self._bundle.sample_rate_hz)
        synthesis = Synthesis(
            self._stages,
            utterance,
            max_frames=self._max_frames(utterance),
            ramp_frames=self._ramp,
            resumes=self._settings.resumes,
            timeout=self._timeout(context),
        )
        return output, synthesis

    def _max_frames(self, utterance: speech_pb2.Utterance) -> int:
        """The caller's cap or the deployment's, whichever is nearer."""
        limit_ms = self._settings.max_audio_ms
        if utterance.HasField("max_audio_ms"):
            if utterance.max_audio_ms < 1:
                raise InvalidArgument("utterance.max_audio_ms", f"must be 1 or more, not {utterance.max_audio_ms}")
            limit_ms = min(limit_ms, utterance.max_audio_ms)
        return frames_of_ms(limit_ms, self._bundle.frame_rate_hz)

    def _timeout(self, context: grpc.aio.ServicerContext) -> Callable[[], float]:
        """Seconds left of the caller's deadline or of our own, whichever is nearer."""
        own = time.monotonic() + self._settings.max_request_s

        def left() -> float:
            theirs = context.time_remaining()
            ours = own - time.monotonic()
            return max(0.0, ours if theirs is None else min(ours, theirs))

        return left

    def _ready(self) -> StageInfo:
        if self._stages.info is None:
            raise UnavailableError(f"the chain is not ready: {self._stages.why_not}", reason="NOT_READY")
        return self._stages.info

    def _write(self, synthesis: Synthesis, output: Output, event: AudioChunk) -> bytes:
        synthesis.timeline.audio(len(event.samples) / self._bundle.sample_rate_hz)
        return output.feed(event.samples)

    def _finish(self, synthesis: Synthesis, output: Output, summary: speech_pb2.SpeechSummary) -> None:
        summary.spoken_text = synthesis.spoken_text
        summary.finish_reason = synthesis.finish_reason
        summary.frames = synthesis.frames
        summary.samples = output.samples
        synthesis.timeline.fill(summary, synthesis.frames / self._bundle.frame_rate_hz)
        reason = common_pb2.FinishReason.Name(summary.finish_reason)
        instruments.finished.add(1, {"finish_reason": reason.removeprefix("FINISH_REASON_")})
        trace.get_current_span().set_attributes(
            {
                "csm.frames": summary.frames,
                "csm.finish_reason": reason,
                "csm.real_time_factor": summary.real_time_factor,
            }
        )


def _admit(summary: speech_pb2.SpeechSummary, event: Started, grant: Grant) -> None:
    grant.keep()
    summary.seed, summary.prompt_tokens = event.seed, event.prompt_tokens
    # As text: an attribute's number has 63 bits, a seed 64.
    trace.get_current_span().set_attributes({"csm.seed": str(event.seed), "csm.prompt_tokens": event.prompt_tokens})


def _audio(data: bytes) -> speech_pb2.StreamSynthesizeResponse:
    return speech_pb2.StreamSynthesizeResponse(audio={"data": data})


def _trace_id() -> str:
    return f"{trace.get_current_span().get_span_context().trace_id:032x}"
