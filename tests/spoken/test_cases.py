"""Texts and their spoken forms by kind, and what is refused."""

import re
import statistics
import time

import pytest

from services.tokenizer.spoken.form import NotSpeakable, SpokenForm
from support.spoken_cases import read_cases

ENGLISH = SpokenForm(("en",))
CASES = read_cases()


def test_there_are_cases_enough_of_every_kind():
    kinds = {case.kind for case in CASES}
    assert len(CASES) >= 250 and len(kinds) >= 15
    assert min(sum(case.kind == kind for case in CASES) for kind in kinds) >= 10
    assert len({case.text for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {ascii(case.text)[1:-1]}")
def test_spoken_form(case):
    assert ENGLISH.of(case.text) == case.spoken
    assert ENGLISH.of(case.spoken) == case.spoken


def test_english_leaves_words_and_sentence_punctuation_alone():
    for case in CASES:
        assert re.fullmatch(r"[^\W\d_]['\w]*|(?:[^\W\d_]|[ .,;:!?'\"-])*", ENGLISH.of(case.text)), case.text


@pytest.mark.parametrize(
    "text", [".", "...", "***", '"', "''", "\u200b\u200b", "\U0001f602\U0001f602", "\u2764\ufe0f", "—", "?!", "- - -", "<b></b>",
             "<break/>", "<|end_of_text|>", "\x07", "()", "[]", "#", "\u3000", "\ufeff", ":)", "| | |", "```\n```", "&nbsp;", "\u0301"],
    ids=ascii,
)  # fmt: skip
def test_what_has_no_words_is_refused(text):
    with pytest.raises(NotSpeakable, match="has no words"):
        ENGLISH.of(text)
    if any(char.isalnum() for char in text) or "\0" in text:
        return
    with pytest.raises(NotSpeakable, match="has no words"):
        ENGLISH.checked(text)


@pytest.mark.parametrize(
    "text, script, letters",
    [
        ("你好，今天天气很好。", "Han", "你好"),
        ("مرحبا كيف حالك", "Arabic", "مرحبا"),
        ("Say привет now", "Cyrillic", "привет"),
        ("こんにちは", "Hiragana", "こんにちは"),
        ("안녕하세요", "Hangul", "안녕하세요"),
        ("नमस्ते", "Devanagari", "नमस"),
        ("Γειά σου", "Greek", "Γειά"),
        ("שלום", "Hebrew", "שלום"),
        ("สวัสดี", "Thai", "สว"),
    ],
)
def test_a_script_that_the_languages_do_not_use_is_refused(text, script, letters):
    for read in (ENGLISH.of, ENGLISH.checked):
        with pytest.raises(NotSpeakable, match=f"{script} script \\({letters}.*the voices speak en"):
            read(text)


def test_other_languages_are_cleaned_and_keep_their_digits():
    german = SpokenForm(("de",))
    assert german.of("**Hallo**\u200b, es ist 5\u00a0Uhr \U0001f600") == "Hallo, es ist 5 Uhr"
    assert german.of("10\u202f000 und 10 000 und 1,50") == "10 000 und 10 000 und 1,50"  # a comma would be a point
    russian = SpokenForm(("ru", "en"))
    assert russian.of("<b>Привет</b> world") == "Привет world"
    with pytest.raises(NotSpeakable, match="the voices speak ru"):
        SpokenForm(("ru",)).of("Hello")


PLAIN = [
    "Hello there, how are you today?",
    "I think that we should go home now. It is late!",
    "Your table is ready, and I'll bring the menu.",
]


@pytest.mark.parametrize("text", PLAIN)
def test_plain_words_take_the_quick_way_unchanged(text):
    assert ENGLISH.is_plain(text)
    assert ENGLISH.of(text) == text == ENGLISH._round(text)


def test_what_takes_the_quick_way_would_come_out_the_same_by_the_long_one():
    for case in CASES:
        for text in (case.text, case.spoken):
            if ENGLISH.is_plain(text):
                assert ENGLISH._round(text) == text


def test_time_a_sentence(capsys):
    """A print, not a limit: the machine may be busy."""

    def ms(texts):
        took = []
        for text in texts:
            began = time.thread_time()
            SpokenForm._of(ENGLISH, text)
            took.append(1000 * (time.thread_time() - began))
        return statistics.quantiles(took, n=20)

    ms([case.text for case in CASES])  # warm
    mixed, plain = ms([case.text for case in CASES]), ms(PLAIN * 50)
    with capsys.disabled():
        print(f"\n  spoken form, ms: cases p50 {mixed[9]:.2f} p95 {mixed[18]:.2f}; plain p95 {plain[18]:.4f}")
