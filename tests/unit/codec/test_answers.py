"""Audio of several passes goes out as one message, the first at once."""

import random

import pytest

from services.codec.answers import Answers


def test_passes_of_one_message_are_one_answer():
    answers = Answers()
    answers.expect(1)
    assert answers.decoded(b"a", 1) == b"a"
    answers.expect(12)
    assert answers.decoded(b"b" * 8, 8) == b""
    assert answers.decoded(b"c" * 4, 4) == b"b" * 8 + b"c" * 4


def test_the_first_audio_waits_for_nothing():
    answers = Answers()
    answers.expect(20)
    assert answers.decoded(b"a" * 8, 8) == b"a" * 8
    assert answers.decoded(b"b" * 8, 8) == b""
    assert answers.decoded(b"c" * 4, 4) == b"b" * 8 + b"c" * 4


def test_a_pass_over_several_messages_answers_them_together():
    answers = Answers()
    for frames in (1, 1, 12):
        answers.expect(frames)
    assert answers.decoded(b"a" * 8, 8) == b"a" * 8
    assert answers.decoded(b"b" * 6, 6) == b"b" * 6


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_lost_or_left(seed):
    chance, answers, out = random.Random(seed), Answers(), b""
    expected = bytes(chance.randrange(256) for _ in range(300))
    sent = done = 0
    while done < len(expected):
        while sent < len(expected) and (sent == done or chance.random() < 0.5):
            size = min(chance.randint(1, 20), len(expected) - sent)
            answers.expect(size)
            sent += size
        size = min(chance.randint(1, 8), sent - done)
        out += answers.decoded(expected[done : done + size], size)
        done += size
    assert out == expected
