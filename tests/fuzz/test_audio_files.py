"""The short form of `fuzz.audio_files`."""

from fuzz import audio_files


def test_damaged_files_end_in_a_clip_or_a_line():
    outcome = audio_files.run(400, seed=1)
    assert not outcome.wrong, outcome.describe()
    assert outcome.read > 20 and sum(outcome.refusals.values()) > 100
    assert outcome.growth_bytes < 60 << 20
