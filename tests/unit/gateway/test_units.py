"""Units of text that arrives in pieces: nothing is lost, and each ends where a reader would pause."""

import random

import pytest

from gateway.speech.units import UnitCutter, UnitLimits

TEXT = (
    "Well, hello there, my friend. Dr. Smith paid $3.50 at 3 p.m. yesterday! Really? Go to www.example.com. "
    "It is v1.2.3 now, which is good; I like it very much."
)


def units(chunks: list[str], limits: UnitLimits | None = None) -> list[str]:
    cutter, found = UnitCutter(limits or UnitLimits()), []
    for index, chunk in enumerate(chunks):
        cutter.append(chunk)
        if index == len(chunks) - 1:
            cutter.flush()
        while (unit := cutter.take()) is not None:
            found.append(unit)
    cutter.flush()  # an empty text has no last piece
    assert cutter.take() is None
    assert cutter.done
    return found


def words(text: str) -> list[str]:
    return [word + " " for word in text.split(" ")[:-1]] + [text.split(" ")[-1]]


def test_whole_text_is_cut_at_sentences_and_short_ones_are_joined():
    assert units([TEXT]) == [
        "Well, hello there, my friend. Dr. Smith paid $3.50 at 3 p.m. yesterday! ",
        "Really? Go to www.example.com. It is v1.2.3 now, which is good; I like it very much.",
    ]


def test_word_by_word_the_first_unit_ends_at_a_clause_and_abbreviations_end_nothing():
    found = units(words(TEXT))
    assert found[0] == "Well, hello there, "
    assert found[1] == "my friend. Dr. Smith paid $3.50 at 3 p.m. yesterday! "


def test_a_first_unit_has_its_length_before_it_ends_at_a_clause():
    limits = UnitLimits(first_chars=30)
    assert units(words(TEXT), limits)[0] == "Well, hello there, my friend. "
    text = "Well, I know that it is very late, and so do you."
    assert units(words(text), limits)[0] == "Well, I know that it is very late, "
    assert units(["Yes!"], limits) == ["Yes!"]


def test_a_first_clause_does_not_wait_for_the_white_space_behind_it():
    cutter = UnitCutter(UnitLimits(first_chars=12))
    cutter.append("They have had 10,")
    assert cutter.take() is None
    cutter.append("000 of them,")
    assert cutter.take() == "They have had 10,000 of them,"
    cutter.append(" and so have we, too,")
    assert cutter.take() is None


def test_a_first_unit_is_one_sentence_however_short_and_takes_others_only_when_they_are_here():
    text = "Yes, I know. That is what I think, too, and so do you."
    assert units(words(text), UnitLimits(first_chars=30))[0] == "Yes, I know. "
    assert units([text], UnitLimits(first_chars=30)) == [text]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ('She said, "I know that it is late," and went.', 'She said, "I know that it is late,"'),
        ("Here “you know that it is so,” I said.", "Here “you know that it is so,”"),
        ("Please call compute_it(alpha,beta) now, will you?", "Please call compute_it(alpha,beta) now,"),
        ("See example.com/@berlin,germany now, please.", "See example.com/@berlin,germany now,"),
        ("They say &quot;eight&quot; tonight, I think.", "They say &quot;eight&quot; "),
        ('"Yes!" he cried. So it is.', '"Yes!" he cried. '),
        ("1. Heat the oven. 2. Mix it all.", "1. Heat the oven. "),
        ("# 12. Heat the oven. Then mix it all.", "# 12. Heat the oven. "),
        ("A. Heat the oven. B. Mix it all.", "A. Heat the oven. "),
    ],
)
def test_character_by_character_a_first_unit_ends_where_a_reader_would(text, first):
    assert units(list(text), UnitLimits(first_chars=20))[0] == first


@pytest.mark.parametrize("text", ["5. ", "5.", "I. "])
def test_a_list_marker_alone_is_a_unit_when_nothing_else_comes(text):
    assert units([text]) == [text]
    cutter = UnitCutter(UnitLimits())
    cutter.append(text)
    assert cutter.take() is None and cutter.may_go_on()
    assert cutter.take(force_words=1) == text


def test_force_takes_a_list_marker_with_what_it_numbers():
    cutter = UnitCutter(UnitLimits())
    cutter.append("1. Heat the oven.")
    assert cutter.take() is None
    assert cutter.take(force_words=1) == "1. Heat the oven."


@pytest.mark.parametrize(
    ("text", "goes_on"),
    [
        ("See Dr.", True),
        ("1. ", True),
        ("See Dr. ", True),
        ("It costs 3.", True),
        ("So do I.", True),
        ("That is all.", False),
    ],
)
def test_what_looks_like_a_sentences_end_may_be_none(text, goes_on):
    cutter = UnitCutter(UnitLimits())
    cutter.append(text)
    assert cutter.ends_sentence() and cutter.may_go_on() is goes_on


def test_sentences_wait_to_be_joined_only_as_long_as_they_may():
    cutter = UnitCutter(UnitLimits())
    cutter.first = False
    cutter.append("So it is. And ")
    assert cutter.take() is None
    assert cutter.take(join=False) == "So it is. "


def test_force_takes_a_clause_before_it_takes_half_of_one():
    cutter = UnitCutter(UnitLimits())
    cutter.first = False
    cutter.append("When it rains, I sta")
    assert cutter.take() is None
    assert cutter.take(force_words=3) == "When it rains, "


def test_a_sentence_is_taken_with_its_last_sign_and_not_before_what_could_go_on():
    cutter = UnitCutter(UnitLimits())
    cutter.append("It costs 3.")
    assert cutter.take() is None
    cutter.append("5 euros!")
    assert cutter.take() == "It costs 3.5 euros!"


def test_force_takes_whole_words():
    cutter = UnitCutter(UnitLimits())
    cutter.append("I will tel")
    assert cutter.take() is None
    assert cutter.take(force_words=3) is None
    assert cutter.take(force_words=2) == "I will "
    assert cutter.pending == "tel"
    assert cutter.take(force_words=1) is None


def test_a_long_sentence_is_cut_at_clauses_then_at_spaces_then_anywhere():
    limits = UnitLimits(max_chars=30)
    assert units(["one two three four five, six seven eight nine ten."], limits) == [
        "one two three four five, ",
        "six seven eight nine ten.",
    ]
    assert max(map(len, units(["word " * 40], limits))) <= 30
    assert [len(unit) for unit in units(["x" * 100], limits)] == [30, 30, 30, 10]


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_lost_however_the_text_is_cut(seed):
    draw = random.Random(seed)
    for _ in range(40):
        text = "".join(draw.choice("abc ABC .,!?;:—\n\"'()0😂。<>*") for _ in range(draw.randint(0, 300)))
        chunks, at = [], 0
        while at < len(text):
            size = draw.randint(1, 12)
            chunks.append(text[at : at + size])
            at += size
        limits = UnitLimits(max_chars=draw.choice([5, 20, 80]))
        found = units(chunks, limits)
        assert "".join(found) == text
        assert all(len(unit) <= limits.max_chars for unit in found if unit.strip())


@pytest.mark.parametrize("step", [1, 5, 400])
@pytest.mark.parametrize(
    ("text", "markup"),
    [
        ("See [the guide, which is long](https://example.com/a?b=c) now, please.", "[the guide, which is long]("),
        ("Well, <break time='5 s, or so'/> here it is. Thanks.", "<break time='5 s, or so'/>"),
        ("word " * 39 + "<break time='500ms'/> and more of it.", "<break time='500ms'/>"),
    ],
)
def test_no_unit_ends_inside_a_tag_or_a_link(text, markup, step):
    found = units([text[begin : begin + step] for begin in range(0, len(text), step)])
    assert "".join(found) == text
    assert any(markup in unit for unit in found), found


def test_a_bracket_that_is_never_closed_holds_nothing_up():
    cutter = UnitCutter(UnitLimits())
    cutter.append("He said [so, and went on. ")
    assert cutter.take() is None
    assert cutter.take(force_words=1) == "He said "
    cutter.append("and on " * 40)
    assert cutter.take() is not None


def test_many_signs_do_not_hold_up_the_words_behind_them():
    cutter = UnitCutter(UnitLimits())
    cutter.append("-" * 450 + " Hello there, my friend. And ")
    found = ""
    while (unit := cutter.take()) is not None:
        found += unit
    assert found.endswith("Hello there, my friend. ")
