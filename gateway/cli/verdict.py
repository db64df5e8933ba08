"""The result of the search for the watermark, in words."""

from __future__ import annotations

from csm.common.v1 import common_pb2
from csm.speech.v1 import speech_pb2
from google.protobuf.duration_pb2 import Duration

_NONE = "No watermark found"
_TOO_SHORT = f"{_NONE}; the clip is too short or too quiet to be sure"
_WORDS = {
    common_pb2.WATERMARK_VERDICT_TOO_SHORT: _TOO_SHORT,
    common_pb2.WATERMARK_VERDICT_SILENT: f"{_NONE}; the clip is silent",
    common_pb2.WATERMARK_VERDICT_OTHER_KEY: f"{_NONE}; the clip carries a mark with a similar key",
    common_pb2.WATERMARK_VERDICT_LIMITED: f"{_NONE} in what was searched",
}


def verdict(answer: speech_pb2.VerifyWatermarkResponse) -> str:
    """Whether the mark is there and where, how sure that is, and whether this bundle could have one at all."""
    if answer.found:
        said = f"Watermark found at {_seconds(answer.position):.2f} s"
    elif answer.threshold > 1 and answer.verdict == common_pb2.WATERMARK_VERDICT_UNSPECIFIED:
        said = _TOO_SHORT
    else:
        said = _WORDS.get(answer.verdict, _NONE)
    lines = [f"{said}." if answer.threshold > 1 else f"{said} ({_numbers(answer.confidence, answer.threshold)})."]
    lines += [f"  {_place(mark)}" for mark in answer.marks]
    if answer.limited:
        lines.append(f"A limit ended the search: {_seconds(answer.searched):.0f} s were searched.")
    if not answer.detectable:
        lines.append("This bundle's watermark nets are untrained: no mark can be found with them.")
    return "\n".join(lines)


def _numbers(confidence: float, threshold: float) -> str:
    """With as many digits as it takes to tell the two apart."""
    digits = next((n for n in range(2, 7) if f"{confidence:.{n}f}" != f"{threshold:.{n}f}"), 7)
    return f"confidence {confidence:.{digits}f}; found from {threshold:.{digits}f} on"


def _place(mark: common_pb2.WatermarkMark) -> str:
    place = f"{_seconds(mark.start):.1f} to {_seconds(mark.end):.1f} s, channel {mark.channel + 1}"
    if abs(mark.speed - 1) > 1e-6:
        kept = "pitch kept" if mark.keeps_pitch else "pitch changed"
        place += f", at {100 * mark.speed:.1f} % of the speed ({kept})"
    return f"{place}, key {mark.key_id}" if mark.key_id else place


def _seconds(duration: Duration) -> float:
    nanoseconds: int = duration.ToNanoseconds()
    return nanoseconds / 1e9
