"""What the gateway says of a request, as JSON."""

from __future__ import annotations

from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2
from google.protobuf.duration_pb2 import Duration


def summary_fields(started: speech_pb2.SpeechStarted, summary: speech_pb2.SpeechSummary) -> dict[str, object]:
    """Times in milliseconds since the gateway had the request."""
    return {
        "trace_id": started.trace_id,
        "seed": str(summary.seed),  # 64 bits: more than JavaScript's numbers hold
        "finish_reason": common_pb2.FinishReason.Name(summary.finish_reason).removeprefix("FINISH_REASON_").lower(),
        "frames": summary.frames,
        "samples": summary.samples,
        "prompt_tokens": summary.prompt_tokens,
        "spoken_text": summary.spoken_text,
        "audio_ms": milliseconds(summary.audio_duration),
        "time_to_first_audio_ms": milliseconds(summary.time_to_first_audio),
        "real_time_factor": round(summary.real_time_factor, 4),
        "stages": [
            {
                "stage": timing.stage,
                "first_output_ms": milliseconds(timing.first_output),
                "last_output_ms": milliseconds(timing.last_output),
            }
            for timing in summary.stages
        ],
    }


def verdict_fields(found: speech_pb2.VerifyWatermarkResponse) -> dict[str, object]:
    """What a search for the watermark found. Times in seconds of the clip."""
    return {
        "object": "watermark",
        "verdict": common_pb2.WatermarkVerdict.Name(found.verdict).removeprefix("WATERMARK_VERDICT_").lower(),
        "found": found.found,
        "confidence": round(found.confidence, 4),
        "threshold": round(found.threshold, 4),
        "detectable": found.detectable,
        "searched_s": seconds(found.searched),
        "limited": found.limited,
        "marks": [
            {
                "start_s": seconds(mark.start),
                "end_s": seconds(mark.end),
                "channel": mark.channel,
                "confidence": round(mark.confidence, 4),
                "threshold": round(mark.threshold, 4),
                "speed": mark.speed,
                "keeps_pitch": mark.keeps_pitch,
            }
            for mark in found.marks
        ],
    }


def milliseconds(duration: Duration) -> float:
    """Of a protobuf duration."""
    return round(duration.ToNanoseconds() / 1e6, 3)


def seconds(duration: Duration) -> float:
    """Of a protobuf duration."""
    return round(duration.ToNanoseconds() / 1e9, 4)
