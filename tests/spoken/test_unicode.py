"""Properties that hold for any text at all."""

import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.tokenizer.spoken.form import NotSpeakable, SpokenForm
from support.spoken_cases import read_cases

ENGLISH = SpokenForm(("en",))
# The longest reading of one character is "is greater than or equal to" and blanks; amounts add a currency.
MOST_WORDS_FOR_A_CHARACTER, MOST_BESIDE = 32, 80


def check(text):
    """The spoken form, which is bounded and its own; None when the text is refused."""
    try:
        spoken = ENGLISH._of(text)
    except NotSpeakable as refusal:
        assert str(refusal)
        return None
    assert any(char.isalpha() for char in spoken)
    assert len(spoken) <= MOST_WORDS_FOR_A_CHARACTER * len(text) + MOST_BESIDE
    assert ENGLISH._of(spoken) == spoken
    assert not any(char.isdigit() or (unicodedata.category(char)[0] in "CZ" and char != " ") for char in spoken)
    return spoken


@pytest.mark.parametrize("plane", range(0, 0x110000, 0x10000), ids=hex)
@pytest.mark.parametrize("around", ["{}", "wo{}rd", "I have {} here.", "5{}", "{}5 x"])
def test_every_character(plane, around):
    """Planes 3 to 13 and the private ones have hardly any characters: a sample of them."""
    step = 1 if plane <= 0x20000 else 97
    for code in range(plane, min(plane + 0x10000, sys.maxunicode + 1), step):
        char = chr(code)
        if around != "{}" and plane == 0 and 0x3400 <= code < 0xD800 and code % 31:
            continue  # Han and Hangul all go the same way
        if plane in (0x10000, 0x20000) and around != "{}" and code % 17:
            continue
        text = around.format(char)
        spoken = check(text)
        if spoken is None and around not in ("{}", "{}5 x", "5{}"):
            letters = char + unicodedata.normalize("NFKC", char)
            assert any(each.isalpha() for each in letters), f"{text!a}: only another script's letters may be refused"


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
