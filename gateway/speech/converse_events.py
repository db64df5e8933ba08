"""The messages that a conversation sends."""

from __future__ import annotations

from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2

from gateway.output import Output
from gateway.speech.converse_items import OwnTurn
from gateway.speech.turn_events import (
    AudioChunk,
    ContextDropped,
    NothingSpeakable,
    Started,
    TextLate,
    TurnEvent,
    UnitStarted,
)
from services.runtime.errors import CallError


def audio(own: OwnTurn, data: bytes) -> speech_pb2.ConverseResponse:
    """data: not empty."""
    return speech_pb2.ConverseResponse(audio={"turn": own.number, "data": data})  # type: ignore[arg-type]


def finished(
    own: OwnTurn, reason: common_pb2.FinishReason.ValueType, heard_text: str, sample_rate_hz: int
) -> speech_pb2.ConverseResponse:
    """The end of a turn. sample_rate_hz: the bundle's."""
    message = speech_pb2.TurnFinished(turn=own.number, finish_reason=reason, heard_text=heard_text, summary=own.summary)
    message.summary.finish_reason = reason
    message.heard.FromNanoseconds(round(own.sent_samples / sample_rate_hz * 1e9))
    return speech_pb2.ConverseResponse(turn_finished=message)


def warning(code: str, message: str) -> speech_pb2.ConverseResponse:
    """code: without its prefix."""
    number = speech_pb2.ConverseWarningCode.Value(f"CONVERSE_WARNING_CODE_{code}")
    return speech_pb2.ConverseResponse(warning=speech_pb2.ConverseWarning(code=number, message=message))


def context_dropped(segments: int) -> speech_pb2.ConverseResponse:
    """So many segments have left."""
    return warning("CONTEXT_DROPPED", f"the {segments} oldest segments have left the context")


def refused(own: OwnTurn, error: CallError) -> speech_pb2.ConverseResponse:
    """A limit ended the turn."""
    return warning("REFUSED", f"turn {own.number}: {error.text}")


async def of_turn(
    own: OwnTurn, output: Output, event: TurnEvent, sample_rate_hz: int
) -> list[speech_pb2.ConverseResponse]:
    """What a turn's event is to the caller. sample_rate_hz: the bundle's."""
    match event:
        case AudioChunk(samples):
            return [audio(own, data) for data in await output.feed(samples)]
        case Started(seed, _):
            started = speech_pb2.TurnStarted(
                turn=own.number, seed=seed, format=output.format, container=output.container
            )
            return [speech_pb2.ConverseResponse(turn_started=started)]
        case UnitStarted(text, spoken, first_sample):
            first = round(first_sample * output.format.sample_rate_hz / sample_rate_hz)
            unit = speech_pb2.SpokenUnit(turn=own.number, text=text, spoken_text=spoken, first_sample=first)
            return [speech_pb2.ConverseResponse(unit=unit)]
        case TextLate():
            return [warning("TEXT_LATE", f"turn {own.number}: its text comes too late, the listener hears silence")]
        case ContextDropped(segments):
            return [context_dropped(segments)]
        case NothingSpeakable(text):
            return [warning("NOTHING_SPEAKABLE", f"turn {own.number}: {text[:60]!r} has nothing speakable")]
