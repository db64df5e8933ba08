"""English text in words. Each module reads one kind; their order is that of `read_english`."""

from __future__ import annotations

import re

from services.tokenizer.spoken.english.abbreviations import read_abbreviations
from services.tokenizer.spoken.english.addresses import read_addresses
from services.tokenizer.spoken.english.codes import read_codes, read_sizes
from services.tokenizer.spoken.english.dates import read_dates
from services.tokenizer.spoken.english.decimals import read_decimals, read_groups
from services.tokenizer.spoken.english.fractions import read_fractions
from services.tokenizer.spoken.english.initials import read_initials
from services.tokenizer.spoken.english.maths import read_approximately, read_maths, read_names
from services.tokenizer.spoken.english.money import read_money
from services.tokenizer.spoken.english.phones import read_phones
from services.tokenizer.spoken.english.plain import read_ordinals, read_plain
from services.tokenizer.spoken.english.ranges import read_ranges, read_ratios
from services.tokenizer.spoken.english.roman import read_roman
from services.tokenizer.spoken.english.shorthand import read_shorthand
from services.tokenizer.spoken.english.signs import read_signs
from services.tokenizer.spoken.english.slashes import read_slashes
from services.tokenizer.spoken.english.streets import read_streets
from services.tokenizer.spoken.english.times import read_times
from services.tokenizer.spoken.english.units import read_named_units, read_units
from services.tokenizer.spoken.english.versions import read_versions

_DIGIT = re.compile(r"\d")


def read_english(text: str) -> str:
    """Words and sentence punctuation for one text, which is clean, folded and without markup."""
    text = read_names(read_groups(text))
    text = read_addresses(text)
    text = read_shorthand(read_abbreviations(read_streets(text)))
    if _DIGIT.search(text):
        text = read_approximately(read_decimals(text))
        text = read_phones(text)
        text = read_dates(text)
        text = read_times(text)
        text = read_ranges(text)
        text = read_money(text)
        text = read_sizes(text)
        text = read_units(text)
        text = read_ratios(text)
        text = read_versions(text)
        text = read_fractions(text)
        text = read_codes(read_ordinals(text))
    else:
        text = read_named_units(read_ranges(read_dates(text)))
    text = read_roman(text)
    text = read_slashes(text)
    text = read_maths(text)
    text = read_plain(text)
    text = read_initials(text)
    return read_signs(text)
