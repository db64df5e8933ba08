"""What is said of a finished utterance or turn: in the answer, in metrics and on the span."""

from __future__ import annotations

from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2
from opentelemetry import trace

from gateway.speech.rules import SpeechRules
from gateway.speech.turn import Turn
from services.runtime import instruments


def fill_summary(
    summary: speech_pb2.SpeechSummary,
    turn: Turn,
    samples: int,
    rules: SpeechRules,
    *,
    reason: common_pb2.FinishReason.ValueType | None = None,
    audio_s: float | None = None,
) -> None:
    """samples: sent, at the output's rate. reason, audio_s: of a turn that ended before its end."""
    summary.finish_reason = turn.finish_reason if reason is None else reason
    summary.frames = turn.frames
    summary.samples = samples
    summary.seed, summary.prompt_tokens = turn.seed, turn.prompt_tokens
    summary.spoken_text = " ".join(text.strip() for text in turn.spoken)
    turn.timeline.fill(summary, turn.samples / rules.sample_rate_hz if audio_s is None else audio_s)
    name = common_pb2.FinishReason.Name(summary.finish_reason)
    count_finish(summary.finish_reason)
    trace.get_current_span().set_attributes(
        {
            "csm.frames": summary.frames,
            "csm.finish_reason": name,
            "csm.real_time_factor": summary.real_time_factor,
        }
    )


def count_finish(reason: common_pb2.FinishReason.ValueType) -> None:
    """One more utterance or turn that ended so."""
    name = common_pb2.FinishReason.Name(reason).removeprefix("FINISH_REASON_")
    instruments.finished.add(1, {"finish_reason": name})
