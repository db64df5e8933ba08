"""Whatever stands between words, no word is lost."""

import re

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.tokenizer.spoken.form import SpokenForm

ENGLISH = SpokenForm(("en",))
WORDS = st.sampled_from("river garden winter table summer butter window yellow".split())
GLUE = st.sampled_from(
    [" ", "\n", "\n\n", "\t", *"*_`|[](){}<>/\\~^=+&#@%$\"'-.,;:!?", "**", "__", "``", "```", " | ", "“", "”", "‘", "’", "—", "–", "…", "...",
     "•", "°", "§", "™", "©", "→", "✅", "👍🏽", "\u200b", "\u00ad", "//", "~~", "==", "||", "$$", "::", "---", "->", "-->", " - ", " & ", " @",
     " + ", " % ", " / ", "- ", "\n- ", "\n* ", "\n# ", "\n> ", "\n1. ", "\n• ", "\n---\n", "\n***\n", "\n===\n", "|\n|", "|\n|-|\n|", "<b>", "</b>",
     "<br>", "<p>", "&amp;", "&nbsp;", "[^1]", "[1]", "[ ]", "()", "<3", ":)", " 5 ", "1/2", "$5", "12:30", " 2024-01-01 "]
)  # fmt: skip
# What is dropped on purpose: emoji's short codes, the language of a block of code, targets of links.
DROPPED = re.compile(r":\w+:|```\w*[^\w]*(?:\n|<)|\]\(|\]:")


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.tuples(GLUE, WORDS), min_size=1, max_size=6), GLUE)
def test_no_word_is_lost(parts, last):
    text = "".join(glue + word for glue, word in parts) + last
    assume(not DROPPED.search(text))
    heard = re.sub(r"[^a-z]", "", ENGLISH._of(text).lower())
    at = 0
    for _, word in parts:
        found = heard.find(word, at)
        assert found >= 0, f"{word} of {text!a}"
        at = found + len(word)
