"""What the search for the watermark found, in words."""

from __future__ import annotations

from csm.speech.v1 import speech_pb2


def verdict(answer: speech_pb2.VerifyWatermarkResponse) -> str:
    """Whether the mark is there, how sure that is, and whether this bundle could have one at all."""
    numbers = f"confidence {answer.confidence:.2f}; found from {answer.threshold:.2f} on"
    if answer.found:
        return f"Watermark found at {answer.position.ToNanoseconds() / 1e9:.2f} s ({numbers})."
    hopeless = "\nThis bundle's watermark nets are untrained: no mark can be found with them."
    return f"Watermark not found ({numbers}).{'' if answer.detectable else hopeless}"
