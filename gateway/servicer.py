"""SpeechService: the public face of the chain."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import grpc
from csm.speech.v1 import speech_pb2, speech_pb2_grpc
from opentelemetry import trace

from gateway.access import Access, Grant
from gateway.audit import AuditTrail
from gateway.config import GatewaySettings
from gateway.output import Output
from gateway.speech.context import Context
from gateway.speech.converse import Conversation
from gateway.speech.deadline import Deadline
from gateway.speech.deployment import Deployment
from gateway.speech.ending import likely_s
from gateway.speech.prompt_tokenizer import Heard, PromptTokenizer
from gateway.speech.rules import SpeechRules
from gateway.speech.summary import fill_summary
from gateway.speech.trace_id import trace_id
from gateway.speech.turn import Turn
from gateway.speech.turn_events import AudioChunk, Started
from gateway.speech.turn_options import TurnOptions
from gateway.stages import StageInfo, Stages
from gateway.verification import verify, verify_stream
from gateway.voices.names import VoiceNames
from models.bundle import Bundle
from services.runtime import instruments
from services.runtime.admission import Admission
from services.runtime.errors import InvalidArgument, UnavailableError
from services.runtime.version import version

log = logging.getLogger(__name__)


class SpeechServicer(speech_pb2_grpc.SpeechServiceServicer):
    """Holds no state of a request beyond its call. access: to be among its server's interceptors."""

    def __init__(
        self,
        settings: GatewaySettings,
        bundle: Bundle,
        stages: Stages,
        ramp_frames: list[int],
        voices: VoiceNames,
        audit: AuditTrail,
    ):
        """Raises: SettingError."""
        self.access = Access(settings)
        self._settings, self._bundle, self._stages, self._voices = settings, bundle, stages, voices
        self._audit = audit
        self._rules = SpeechRules.of(settings, bundle, ramp_frames)
        self._streams = Admission("utterances", settings.max_streams)
        self._verifications = Admission("verifications", settings.max_verifications)
        self._conversations = Admission("conversations", settings.max_conversations)
        self._deployment = Deployment(settings, stages, self._rules, self.access, self._streams, voices, audit)
        instruments.observe_admission(self._streams, "csm.gateway.streams")
        instruments.observe_admission(self._verifications, "csm.gateway.verifications")
        instruments.observe_admission(self._conversations, "csm.gateway.conversations")

    def prompt_tokenizer(self, context: grpc.aio.ServicerContext) -> PromptTokenizer:
        """For one call."""
        self._ready()
        return PromptTokenizer(self._stages, Deadline(context.time_remaining, self._settings.max_request_s))

    def stop(self) -> None:
        """No new turns from now on: conversations end with the turn that runs."""
        self._deployment.draining.set()

    def StreamSynthesize(
        self, request: speech_pb2.StreamSynthesizeRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[speech_pb2.StreamSynthesizeResponse, None]:
        return self.speak(request, context)

    async def speak(
        self, request: speech_pb2.StreamSynthesizeRequest, context: grpc.aio.ServicerContext, *, streamed: bool = True
    ) -> AsyncGenerator[speech_pb2.StreamSynthesizeResponse, None]:
        """StreamSynthesize's answers. streamed: whether the caller hears them as they come. Raises: CallError."""
        utterance = request.utterance
        with self.access.enter(len(utterance.text)) as grant, self._streams.enter():
            output = self._begin(utterance, request.output)
            turn = await self._turn(utterance, context, streamed=streamed)
            async with aclosing(turn.events()) as events:
                async for event in events:
                    if isinstance(event, Started):
                        _admit(event, grant)
                        yield speech_pb2.StreamSynthesizeResponse(
                            started=speech_pb2.SpeechStarted(
                                format=output.format,
                                container=output.container,
                                seed=event.seed,
                                prompt_tokens=event.prompt_tokens,
                                trace_id=trace_id(),
                            )
                        )
                    elif isinstance(event, AudioChunk):
                        for data in await output.feed(event.samples):
                            yield _audio(data)
            for data in await output.finish():
                yield _audio(data)
            summary = speech_pb2.SpeechSummary()
            fill_summary(summary, turn, output.samples, self._rules)
            yield speech_pb2.StreamSynthesizeResponse(finished=speech_pb2.SpeechFinished(summary=summary))

    async def Synthesize(
        self, request: speech_pb2.SynthesizeRequest, context: grpc.aio.ServicerContext
    ) -> speech_pb2.SynthesizeResponse:
        utterance = request.utterance
        with self.access.enter(len(utterance.text)) as grant, self._streams.enter():
            output = self._begin(utterance, request.output, streamed=False)
            turn = await self._turn(utterance, context, streamed=False)
            pieces: list[bytes] = []
            async with aclosing(turn.events()) as events:
                async for event in events:
                    if isinstance(event, Started):
                        _admit(event, grant)
                    elif isinstance(event, AudioChunk):
                        pieces += await output.feed(event.samples)
            pieces += await output.finish()
            summary = speech_pb2.SpeechSummary()
            fill_summary(summary, turn, output.samples, self._rules)
            return speech_pb2.SynthesizeResponse(
                audio=b"".join(pieces),
                format=output.format,
                container=output.container,
                summary=summary,
                trace_id=trace_id(),
            )

    async def Converse(
        self, request_iterator: AsyncIterator[speech_pb2.ConverseRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[speech_pb2.ConverseResponse]:
        with self.access.converse(), self._conversations.enter():
            self._ready()
            async with aclosing(Conversation(self._deployment, context).responses(request_iterator)) as responses:
                async for response in responses:
                    yield response

    async def VerifyWatermark(
        self, request: speech_pb2.VerifyWatermarkRequest, context: grpc.aio.ServicerContext
    ) -> speech_pb2.VerifyWatermarkResponse:
        with self.access.enter(), self._verifications.enter():
            info = self._ready()
            return await verify(
                self._stages.watermark,
                request,
                timeout=Deadline(context.time_remaining, self._settings.max_request_s),
                trained=info.watermark_trained,
            )

    async def VerifyWatermarkStream(
        self,
        request_iterator: AsyncIterator[speech_pb2.VerifyWatermarkStreamRequest],
        context: grpc.aio.ServicerContext,
    ) -> AsyncIterator[speech_pb2.VerifyWatermarkStreamResponse]:
        with self.access.enter(), self._verifications.enter():
            info = self._ready()
            responses = verify_stream(
                self._stages.watermark,
                request_iterator,
                timeout=Deadline(context.time_remaining, self._settings.max_search_s),
                trained=info.watermark_trained,
            )
            async with aclosing(responses) as stream:
                async for response in stream:
                    yield response

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
            max_text_chars=self._settings.max_text_chars,
            languages=self._bundle.languages,
        )

    def _begin(
        self, utterance: speech_pb2.Utterance, options: speech_pb2.OutputOptions, *, streamed: bool = True
    ) -> Output:
        """Check what the gateway itself answers for; text, audio and sampling are checked by their stages."""
        trace.get_current_span().set_attributes(
            {
                "csm.bundle": self._bundle.id,
                "csm.text_characters": len(utterance.text),
                "csm.context_turns": len(utterance.context),
            }
        )
        if self._settings.log_text:
            for turn in utterance.context:
                log.info("speaker %d: %s", turn.speaker, turn.text)
            log.info("speaker %d: %s", utterance.speaker, utterance.text)
        self._ready()
        settings = self._settings
        if not 1 <= len(utterance.text) <= settings.max_text_chars:
            raise InvalidArgument(
                "utterance.text", f"must have 1 to {settings.max_text_chars} characters, not {len(utterance.text)}"
            )
        if len(utterance.context) > settings.max_context_turns:
            raise InvalidArgument(
                "utterance.context",
                f"has {len(utterance.context)} turns, at most {settings.max_context_turns} are taken",
            )
        if utterance.HasField("max_audio_ms") and utterance.max_audio_ms < 1:
            raise InvalidArgument("utterance.max_audio_ms", f"must be 1 or more, not {utterance.max_audio_ms}")
        return Output(options, self._bundle.sample_rate_hz, streamed=streamed, model=self._bundle.id)

    async def _turn(
        self, utterance: speech_pb2.Utterance, context: grpc.aio.ServicerContext, *, streamed: bool = True
    ) -> Turn:
        """The utterance as one turn, whose text is complete. Raises: CallError."""
        speech_s = likely_s(utterance.text)
        deadline = Deadline(context.time_remaining, self._settings.max_request_s, lambda: speech_s)
        tokenizer = PromptTokenizer(self._stages, deadline, _flag(utterance, "text_normalization", True))
        choice = await self._voices.choose(
            utterance.voice,
            utterance.speaker if utterance.HasField("speaker") else None,
            self.access.owner(),
            lambda: PromptTokenizer(self._stages, deadline),
            "utterance",
        )
        heard = await tokenizer.heard(
            [
                Heard(turn.speaker, turn.text, turn.audio, f"utterance.context[{index}]")
                for index, turn in enumerate(utterance.context)
            ]
        )
        voice = [*choice.prompt, *heard]
        text = self._rules.text_source()
        text.fit(self._rules.unit_limits(self._ready().max_seq_len - sum(segment.tokens for segment in voice)))
        text.append(utterance.text)
        text.flush()
        options = TurnOptions(
            speaker=choice.speaker,
            streamed=streamed,
            on_audio=self.access.count_audio,
            audit=self._audit.begin(token=self.access.owner(), voice=utterance.voice, speaker=choice.speaker),
            sampling=utterance.sampling,
            max_frames=self._rules.max_frames(utterance.max_audio_ms if utterance.HasField("max_audio_ms") else None),
            # Requests with the same voice prompt share what a replica has read of it.
            key=choice.key or _prompt_key(utterance),
        )
        return Turn(self._stages, self._rules, Context(voice), text, tokenizer, options, deadline)

    def _ready(self) -> StageInfo:
        if self._stages.info is None:
            raise UnavailableError(f"the chain is not ready: {self._stages.why_not}", reason="NOT_READY")
        return self._stages.info


def _prompt_key(utterance: speech_pb2.Utterance) -> str | None:
    if not utterance.context:
        return None
    return hashlib.sha256(utterance.context[0].SerializeToString()).hexdigest()


def _flag(message: speech_pb2.Utterance, field: str, default: bool) -> bool:
    value: bool = getattr(message, field) if message.HasField(field) else default  # type: ignore[arg-type]
    return value


def _admit(event: Started, grant: Grant) -> None:
    grant.keep()
    # As text: an attribute's number has 63 bits, a seed 64.
    trace.get_current_span().set_attributes({"csm.seed": str(event.seed), "csm.prompt_tokens": event.prompt_tokens})


def _audio(data: bytes) -> speech_pb2.StreamSynthesizeResponse:
    # A dict: a message that is put into another one is copied once more.
    return speech_pb2.StreamSynthesizeResponse(audio={"data": data})  # type: ignore[arg-type]
