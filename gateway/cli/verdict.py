"""The result of the search for the watermark, in words."""

from __future__ import annotations

from csm.speech.v1 import speech_pb2


def verdict(answer: speech_pb2.VerifyWatermarkResponse) -> str:
    """Whether the mark is there, how sure that is, and whether this bundle could have one at all."""
    numbers = _numbers(answer.confidence, answer.threshold)
    if answer.found:
        return f"Watermark found at {answer.position.ToNanoseconds() / 1e9:.2f} s ({numbers})."
    if not answer.detectable:
        return f"No watermark found ({numbers}).\nThis bundle's watermark nets are untrained: no mark can be found with them."
    if answer.threshold > 1:
        return "No watermark found; the clip is too short or too quiet to be sure."
    return f"No watermark found ({numbers})."


def _numbers(confidence: float, threshold: float) -> str:
    """With as many digits as it takes to tell the two apart."""
    digits = next((n for n in range(2, 7) if f"{confidence:.{n}f}" != f"{threshold:.{n}f}"), 7)
    return f"confidence {confidence:.{digits}f}; found from {threshold:.{digits}f} on"
