"""What the decoder may be given."""

import numpy as np
import pytest

from services.codec.frames import FramesError, codes_of

LIMITS = {"codebooks": 3, "bins": 16}


def test_good_frames_become_an_array():
    table = codes_of([[0, 1, 15], [2, 3, 4]], **LIMITS)
    assert table.dtype == np.int64
    assert table.tolist() == [[0, 1, 15], [2, 3, 4]]


@pytest.mark.parametrize(
    "frames, field, words",
    [
        ([], "frames", "1 to 64 frames, not 0"),
        ([[0, 0, 0]] * 65, "frames", "1 to 64 frames, not 65"),
        ([[0, 0, 0], [0, 0]], "frames[1].codes", "3 codes, not 2"),
        ([[0, 0, 0, 0]], "frames[0].codes", "3 codes, not 4"),
        ([[]], "frames[0].codes", "3 codes, not 0"),
        ([[0, 0, 0], [0, 16, 99]], "frames[1].codes[1]", "below 16, not 16"),
        ([[2**32 - 1, 0, 0]], "frames[0].codes[0]", "below 16, not 4294967295"),
    ],
)
def test_bad_frames_are_refused(frames, field, words):
    with pytest.raises(FramesError) as caught:
        codes_of(frames, **LIMITS)
    assert caught.value.field == field
    assert words in caught.value.description
