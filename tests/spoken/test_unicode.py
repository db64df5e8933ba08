"""Properties that hold for any text at all."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.tokenizer.spoken.clean import clean
from services.tokenizer.spoken.form import NothingSpeakable, NotSpeakable, SpokenForm
from support.spoken_cases import read_cases

ENGLISH = SpokenForm(("en",))
# The longest reading of one character is "is greater than or equal to" and blanks; amounts add a currency.
MOST_WORDS_FOR_A_CHARACTER, MOST_BESIDE = 32, 80


def check(text, refuses=False):
    """The spoken form, which is bounded and its own; None when the text is refused, unless `refuses` lets that through."""
    try:
        spoken = ENGLISH._of(text)
    except NotSpeakable as refusal:
        assert str(refusal)
        if refuses:
            raise
        return None
    assert any(char.isalpha() for char in spoken)
    assert len(spoken) <= MOST_WORDS_FOR_A_CHARACTER * len(text) + MOST_BESIDE
    assert ENGLISH._of(spoken) == spoken
    assert not any(char.isdigit() or (unicodedata.category(char)[0] in "CZ" and char != " ") for char in spoken)
    return spoken


def is_foreign(char):
    """Whether it is refused as a letter of another script."""
    try:
        check(char, refuses=True)
    except NotSpeakable as refusal:
        return not isinstance(refusal, NothingSpeakable)
    return False


def is_dropped(char):
    """Whether the first stage takes the character out, so that all others see the text without it."""
    return clean(f"wo{char}rd") == "word"


AROUND = ["wo{0}rd", "I have {0} here.", "It is 5{0} and {0}5 x."]


def together(around, chars, count):
    for start in range(0, len(chars), count):
        yield " ".join(map(around.format, chars[start : start + count]))


@pytest.mark.slow
@pytest.mark.parametrize("plane", range(0, 0x110000, 0x10000), ids=hex)
def test_every_character(plane):
    """All of them alone. Between words: Latin ones each in a text of its own, other signs and letters that may be
    spoken ten in one, letters of other scripts, which are refused, 500 in one; what the first stage drops, by it alone.
    """
    own, shared, foreign, dropped = [], [], [], []
    for char in map(chr, range(plane, plane + 0x10000)):
        kind = foreign if is_foreign(char) else own if char < "\u0250" else dropped if is_dropped(char) else shared
        kind.append(char)
    for text in [*(around.format(char) for char in own for around in AROUND), *together(" ".join(AROUND), shared, 10)]:
        assert check(text), f"{text!a} has no letter of another script"
    for text in together("wo{0}rd", foreign, 500):
        assert check(text) is None
    whole = "wo{0}rd 5{0} {0}5"
    assert clean("\n".join(map(whole.format, dropped))) == "\n".join([whole.format("")] * len(dropped))


@settings(max_examples=400, deadline=None)
@given(st.text(max_size=200))
def test_any_text(text):
    check(text)


TEXTS = [case.text for case in read_cases()]


@st.composite
def fragments(draw):
    """A few characters from the middle of a case."""
    text = draw(st.sampled_from(TEXTS))
    start = draw(st.integers(0, len(text) - 1))
    return text[start : start + draw(st.integers(1, 12))]


PIECES = st.one_of(
    fragments(),
    st.sampled_from(TEXTS),
    st.sampled_from(list(" \n\t.,;:!?-–—'\"()[]{}<>|*_#~`^+=/\\&%$€£¥@°×÷±≤²½→")),
    st.text(alphabet="0123456789", min_size=1, max_size=12),
    st.sampled_from(
        "1.2 0.5 1,234 1/2 007 2024 45 101 $ € k M bn km kg s min am p.m. st Jan V X A ² ½ US$ per to".split()
    ),
    st.text(alphabet="abcdefgABCDEFGIVX", min_size=1, max_size=6),
)


@settings(max_examples=600, deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=8), st.sampled_from(["", " ", ", ", "\n"]))
def test_any_mix_of_what_people_write(pieces, glue):
    check(glue.join(pieces))


@pytest.mark.parametrize("piece", ["<!--", "*a", "_a ", "[a](", "((", "1-", "1.", "1,", "1/", "$1 ", "a@", "http://", "A.", "AB ", "&#", "\\frac{",
                                   "|", "# ", "> ", "1:", "x^", "~~a", "'", '"', "IV ", "-", "a.b", "\u0301", "+1 ", "0", "a/b"])  # fmt: skip
def test_the_longest_text_takes_bounded_time(piece):
    import time

    text = (piece * 4096)[:4096]
    began = time.thread_time()
    check(text)
    assert time.thread_time() - began < 10  # twice the form; no search that grows with the square or worse
