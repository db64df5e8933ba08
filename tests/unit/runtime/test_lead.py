"""Who is the most urgent of many streams."""

import math

from services.runtime.lead import Lead


def test_a_stream_that_gave_nothing_is_the_most_urgent():
    new, dry = Lead(), Lead()
    dry.gave(0.5, 100.0)
    assert new.due_s < dry.due_s and new.seconds(1e9) == -math.inf


def test_a_listener_plays_from_the_first_audio_on_and_waits_when_there_is_none():
    lead = Lead()
    lead.gave(1.0, 100.0)
    lead.gave(1.0, 100.5)
    assert lead.seconds(100.5) == 1.5
    assert lead.seconds(103.0) == -1.0  # since 102
    lead.gave(0.25, 103.0)
    assert lead.due_s == 103.25
