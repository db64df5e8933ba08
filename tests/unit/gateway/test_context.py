"""A conversation's context: what was heard stays, what does not fit leaves, the voice prompt never does."""

import pytest

from gateway.speech.context import Context, Segment, heard_part

FRAME, RATE = 1920, 12.5


def segment(tokens: int, turn: int | None = None, first_sample: int = 0, text: str = "x") -> Segment:
    return Segment(0, text, (1, 2), list(range(tokens - 3)), turn, first_sample)


def test_older_half_leaves_and_the_voice_prompt_stays():
    context = Context(voice=[segment(100)], said=[segment(50, turn) for turn in range(10)])
    assert context.tokens == 600
    assert context.make_room(600) == 0
    assert context.make_room(599) == 5
    assert [one.turn for one in context.said] == [5, 6, 7, 8, 9]
    assert context.make_room(120) == 5 and context.said == [] and len(context.voice) == 1


def test_one_long_turn_leaves_whole_when_it_alone_does_not_fit():
    context = Context(said=[segment(500, 0)])
    assert context.make_room(400) == 1 and context.tokens == 0


@pytest.mark.parametrize(
    ("frames_heard", "kept"), [(0, None), (3, None), (9, "one"), (20, "one two three four"), (99, "all")]
)
def test_words_follow_the_frames_that_were_heard(frames_heard, kept):
    text = "one two three four five."
    whole = Segment(0, text, (1,), list(range(25)), turn=0, first_sample=5 * FRAME)
    part = heard_part(whole, (5 + frames_heard) * FRAME + FRAME // 2, FRAME, RATE)
    if kept is None:
        assert part is None
    elif kept == "all":
        assert part is whole
    else:
        assert part.text == kept and list(part.frames) == list(range(frames_heard)) and part.ids == ()


def test_a_unit_broken_off_early_counts_words_against_the_length_it_would_have_had():
    text = "These are many words that would have taken several seconds to say aloud."
    broken = Segment(0, text, (1,), [0] * 5, turn=0)
    part = heard_part(broken, 4 * FRAME, FRAME, RATE)
    assert part is None or len(part.text.split()) <= 1


def test_what_was_heard_of_a_turn():
    context = Context(
        said=[
            segment(10, 0),
            Segment(1, "their words", (1,), [0] * 5),
            Segment(0, "first unit. ", (1,), [0] * 12, 1, 0),
            Segment(0, "second unit here. ", (1,), [0] * 18, 1, 12 * FRAME),
            Segment(0, "third unit.", (1,), [0] * 12, 1, 30 * FRAME),
        ]
    )
    parts = context.heard_of(1, 25 * FRAME, FRAME, RATE)
    assert [segment.text for segment, _ in parts] == ["first unit. ", "second unit here. ", "third unit."]
    assert [part and (part.text, len(part.frames)) for _, part in parts] == [
        ("first unit. ", 12),
        ("second unit", 13),
        None,
    ]
    assert [part for _, part in context.heard_of(1, 0, FRAME, RATE)] == [None] * 3
    for segment_, part in parts:
        context.replace(segment_, part)
    assert [len(one.frames) for one in context.said] == [7, 5, 12, 13]
