"""The words for the result of a search for the watermark."""

import pytest
from csm.speech.v1 import speech_pb2

from gateway.cli.verdict import verdict


def answer(**fields):
    found = speech_pb2.VerifyWatermarkResponse(**({"detectable": True} | fields))
    found.position.FromMilliseconds(120)
    return found


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"found": True, "confidence": 0.86, "threshold": 0.73},
            "Watermark found at 0.12 s (confidence 0.86; found from 0.73 on).",
        ),
        ({"confidence": 0.25, "threshold": 0.73}, "No watermark found (confidence 0.25; found from 0.73 on)."),
        ({"confidence": 0.7299, "threshold": 0.7301}, "No watermark found (confidence 0.7299; found from 0.7301 on)."),
        (
            {"found": True, "confidence": 0.731, "threshold": 0.7301},
            "Watermark found at 0.12 s (confidence 0.731; found from 0.730 on).",
        ),
        (
            {"confidence": 0.9, "threshold": 1.4},
            "No watermark found; the clip is too short or too quiet to be sure.",
        ),
    ],
)
def test_words_and_numbers(fields, words):
    assert verdict(answer(**fields)) == words


def test_an_untrained_bundle_is_no_evidence():
    assert "nets are untrained: no mark can be found" in verdict(answer(detectable=False, threshold=0.7))
