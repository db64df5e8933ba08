"""Who is the most urgent of many streams."""

from services.runtime.playback_deadline import PlaybackDeadline


def test_who_waits_for_the_first_audio_was_due_when_it_was_asked_for():
    dry, new, newer, served = (
        PlaybackDeadline(0.0),
        PlaybackDeadline(101.0),
        PlaybackDeadline(102.0),
        PlaybackDeadline(90.0),
    )
    dry.audio_sent(0.5, 100.0)
    served.audio_sent(4.0, 100.0)
    assert dry.deadline_s < new.deadline_s < newer.deadline_s < served.deadline_s


def test_a_listener_plays_from_the_first_audio_on_and_waits_when_there_is_none():
    deadline = PlaybackDeadline(99.0)
    deadline.audio_sent(1.0, 100.0)
    deadline.audio_sent(1.0, 100.5)
    assert deadline.deadline_s == 102.0
    deadline.audio_sent(0.25, 103.0)
    assert deadline.deadline_s == 103.25
