"""The words for the result of a search for the watermark."""

import pytest
from csm.common.v1 import common_pb2
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


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NOT_FOUND", "No watermark found (confidence"),
        ("TOO_SHORT", "No watermark found; the clip is too short or too quiet to be sure (confidence"),
        ("SILENT", "No watermark found; the clip is silent (confidence"),
        ("OTHER_KEY", "No watermark found; the clip carries a mark with a similar key (confidence"),
        ("LIMITED", "No watermark found in what was searched (confidence"),
    ],
)
def test_each_verdict_has_words(name, words):
    value = common_pb2.WatermarkVerdict.Value(f"WATERMARK_VERDICT_{name}")
    assert verdict(answer(verdict=value, confidence=0.3, threshold=0.6)).startswith(words)


def test_marks_are_listed_with_place_channel_and_speed():
    mark = common_pb2.WatermarkMark(channel=1, confidence=0.9, threshold=0.6, speed=0.955)
    mark.start.FromMilliseconds(12340)
    mark.end.FromMilliseconds(15000)
    text = verdict(answer(found=True, confidence=0.9, threshold=0.6, marks=[mark], limited=True))
    assert "12.3 to 15.0 s, channel 2, at 95.5 % of the speed (pitch changed)\n" in text
    mark.key_id = "2025-03"
    assert "(pitch changed), key 2025-03" in verdict(answer(found=True, threshold=0.6, marks=[mark]))
    assert "A limit ended the search: 0 s were searched." in text
