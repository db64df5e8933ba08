"""When an utterance must end: against the lengths that the bundled model's teacher gave 400 utterances."""

import json
from pathlib import Path

import numpy as np
import pytest

from gateway.chain.fade import fade_before
from gateway.speech.ending import EndingRules, SilenceEnd, likely_s

TEACHER = Path(__file__).parents[2] / "voice" / "teacher_frames.json"  # text → frames of 80 ms, one a speaker
RATE, FRAME = 24_000, 1920


def test_no_utterance_of_the_teacher_meets_its_ceiling():
    rules = EndingRules()
    for text, frames in json.loads(TEACHER.read_text()).items():
        assert rules.ceiling_frames(text, 12.5) >= 1.25 * max(frames), text


def test_the_ceiling_follows_the_text():
    rules = EndingRules()
    assert rules.ceiling_frames("Hi.", 12.5) < 60
    assert rules.ceiling_frames("word " * 100, 12.5) > rules.ceiling_frames("word " * 10, 12.5) * 5
    assert EndingRules(ceiling_factor=0).ceiling_frames("Hi.", 12.5) is None


def tone(seconds: float, level: float = 0.1) -> np.ndarray:
    return (level * np.sin(np.arange(round(seconds * RATE / FRAME) * FRAME) * 0.05)).astype(np.float32)


@pytest.mark.parametrize(
    ("pieces", "ends"),
    [
        ([tone(3.0), tone(2.0, 1e-4)], True),
        ([tone(3.0), tone(1.0, 1e-4)], False),  # a pause is no end
        ([tone(3.0), tone(1.0, 1e-4), tone(0.2), tone(1.0, 1e-4)], False),
        ([tone(1.6, 1e-4)], False),  # silence before the speech may be longer
        ([tone(3.0, 1e-4)], True),
    ],
)
def test_near_silence_ends_speech_only_beyond_its_likely_length(pieces, ends):
    text = "These are nine words of speech."
    assert 1.6 < likely_s(text) < 2.9
    detector = SilenceEnd(EndingRules(), text, RATE)
    assert any([detector.feed(piece, FRAME) for piece in pieces]) is ends


def test_a_cut_fades_to_nothing_however_the_audio_is_cut_into_pieces():
    ones = np.ones(1000, np.float32)
    whole = fade_before(ones, 900, 120)
    assert whole[779] == 1 and whole[899] == 0 and np.all(np.diff(whole[780:900]) < 0) and np.all(whole[900:] == 1)
    pieces = [fade_before(ones[begin : begin + 130], 900 - begin, 120) for begin in range(0, 1000, 130)]
    np.testing.assert_allclose(np.concatenate(pieces), whole)
    assert fade_before(ones, 5000, 120) is ones and fade_before(ones, -1, 120) is ones
