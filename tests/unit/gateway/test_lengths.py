from fractions import Fraction

import pytest

from gateway.lengths import frames_of_ms


def test_a_multiple_of_the_frame_is_that_many_frames():
    assert [frames_of_ms(80 * frames, 12.5) for frames in range(1, 1126)] == list(range(1, 1126))


@pytest.mark.parametrize("rate_hz", [12.5, 25.0, 50.0, 21.533203125])
def test_frames_are_the_fewest_that_are_as_long(rate_hz):
    for milliseconds in range(1, 3000):
        frames = frames_of_ms(milliseconds, rate_hz)
        length_ms = Fraction(1000) / Fraction(rate_hz)
        assert frames * length_ms >= milliseconds > (frames - 1) * length_ms
