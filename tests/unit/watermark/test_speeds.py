"""Marks in audio that is played faster or slower."""

import pytest
import soxr

from services.watermark.detector import Detector, Verdict
from services.watermark.embedder import Embedder
from services.watermark.key import PUBLIC_KEY, key_symbols
from services.watermark.search import Search
from services.watermark.speeds import Speed, view_at
from support.watermark_pair import speech_like


def test_a_resampled_mark_is_found_at_its_speed_and_only_where_speeds_are_searched(pair):
    marked = Embedder(pair, PUBLIC_KEY, message_sdr_db=10).embed(speech_like(2.0, seed=0))
    slower = soxr.resample(marked, 24000 * 0.95, 24000, "HQ")
    detector = Detector(pair, offsets=2)
    assert not detector.detect(slower, 24000, PUBLIC_KEY).found
    result = detector.detect(slower, 24000, PUBLIC_KEY, speeds=True)
    assert result.found and result.verdict is Verdict.FOUND
    assert result.marks[0].speed == pytest.approx(0.95, abs=0.012) and not result.marks[0].keeps_pitch
    assert result.marks[0].end_s - result.marks[0].start_s > 0.5


def test_a_view_undoes_its_speed(pair):
    """Columns of a clip at another speed lie where those of the clip as it was did."""
    reader = Detector(pair).reader
    clip = speech_like(1.0)
    plain = view_at(reader, clip, 24000, Speed(1.0, False))
    slower = view_at(reader, soxr.resample(clip, 24000 * 0.95, 24000, "HQ"), 24000, Speed(0.95, False))
    stretched = view_at(reader, clip, 24000, Speed(0.95, True))
    assert slower.columns == plain.columns and slower.seconds(40) == pytest.approx(plain.seconds(40) / 0.95)
    assert stretched.hop == pytest.approx(plain.hop / 0.95)


@pytest.mark.parametrize("keeps_pitch", [False, True])
@pytest.mark.parametrize("factor", [0.95, 0.98, 1.045])
def test_a_column_is_centred_where_a_mark_was_read_at_another_speed(pair, factor, keeps_pitch):
    reader = Detector(pair).reader
    view = view_at(reader, speech_like(2.0), 24000, Speed(factor, keeps_pitch))
    search = Search(
        reader, view, key_symbols(PUBLIC_KEY), channel=0, offsets=2, views=1, stopped=lambda: False, at_s=0.3456
    )
    _, _, centre_s = search.glance(1)
    columns = (centre_s - 0.3456) * view.clip_rate_hz / view.hop
    assert columns == pytest.approx(round(columns), abs=1 / view.hop)
