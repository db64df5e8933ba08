"""Who is the most urgent of many streams."""

from services.runtime.lead import Lead


def test_who_waits_for_the_first_audio_was_due_when_it_was_asked_for():
    dry, new, newer, served = Lead(0.0), Lead(101.0), Lead(102.0), Lead(90.0)
    dry.gave(0.5, 100.0)
    served.gave(4.0, 100.0)
    assert dry.due_s < new.due_s < newer.due_s < served.due_s


def test_a_listener_plays_from_the_first_audio_on_and_waits_when_there_is_none():
    lead = Lead(99.0)
    lead.gave(1.0, 100.0)
    lead.gave(1.0, 100.5)
    assert lead.due_s == 102.0
    lead.gave(0.25, 103.0)
    assert lead.due_s == 103.25
