"""A listener of the load tool: when it plays, its buffer underruns."""

import pytest

from gateway.cli.bench.listener import Listener


def heard(buffer_s, pieces):
    listener = Listener(buffer_s)
    for now_s, audio_s in pieces:
        listener.hear(now_s, audio_s)
    return listener


def test_audio_in_time_never_runs_dry():
    listener = heard(0.0, [(1.0, 0.5), (1.5, 0.5), (1.9, 1.0)])
    assert (listener.underruns, listener.underrun_s) == (0, 0)
    assert listener.first_s == 1.0 and listener.heard_s == 2.0
    assert listener.gaps_s == pytest.approx([0.5, 0.4])
    assert listener.done_s == pytest.approx(3.0)


def test_late_audio_is_an_underrun_and_the_rest_is_played_later():
    # Played out at 1.5; the next comes at 1.7 and lasts to 2.2; the last one is in time for that.
    listener = heard(0.0, [(1.0, 0.5), (1.7, 0.5), (2.1, 0.5)])
    assert listener.underruns == 1 and listener.underrun_s == pytest.approx(0.2)
    assert listener.done_s == pytest.approx(2.7)


@pytest.mark.parametrize(("buffer_s", "underruns"), [(0.19, 1), (0.21, 0)])
def test_a_buffer_bridges_what_is_shorter_than_it(buffer_s, underruns):
    assert heard(buffer_s, [(1.0, 0.5), (1.7, 0.5)]).underruns == underruns


def test_who_hears_nothing_has_no_first_audio():
    listener = Listener(0.2)
    assert listener.first_s is None and listener.underruns == 0 and listener.gaps_s == []
