"""The recogniser's judge: which wordings count as the same, and that what differs does not."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "voice"))

from wording import is_wanted


@pytest.mark.parametrize(
    "heard, spoken",
    [
        ("The new phone costs $799 and the case $25.", "The new phone costs seven hundred ninety nine dollars and the case twenty five dollars."),
        ("Call plus 1, 555123, 4567 now.", "Call plus one, five five five, one two three, four five six seven now."),
        ("Call +1 555-123-4567 now.", "Call plus one, five five five, one two three, four five six seven now."),
        ("Open report final .pdf now.", "Open report final dot P D F now."),
        ("I rated 8 out of 10.", "I rate it eight out of ten."),
        ("The FBI called.", "The F B I called."),
        ("Version 2.0.1 is out.", "Version two point zero point one is out."),
        ("It is -5 degrees.", "It is minus five degrees."),
        ("The shop is open from 9 a.m. to 5 p.m.", "The shop is open from nine A M to five P M."),
    ],
)  # fmt: skip
def test_the_same_words_written_otherwise(heard, spoken):
    assert is_wanted(heard, spoken)


@pytest.mark.parametrize(
    "heard, spoken",
    [
        ("The new phone costs $700 and $99.", "The new phone costs seven hundred ninety nine dollars."),
        ("Call 1 555-123-4567 now.", "Call plus one, five five five, one two three, four five six seven now."),
        ("It is 5 degrees.", "It is minus five degrees."),
        ("Dial 9-1-1-1-1.", "Dial nine one one now."),
        ("I rated nine out of 10.", "I rate it nine out of ten."),
        ("Open report final pdf now.", "Open report final dot P D F now."),
        ("I rate at 8 out of 10.", "I rate it eight out of ten."),
        ("IT and T called.", "A T and T called."),
        ("", "Hello there."),
    ],
)  # fmt: skip
def test_other_words(heard, spoken):
    assert not is_wanted(heard, spoken)
