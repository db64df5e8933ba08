import random

import pytest

from services.watermark.key import PUBLIC_KEY, check_key, key_symbols, parse_key, symbols_key


@pytest.mark.parametrize("text", ["212,211,146,56,201", " [212, 211, 146, 56, 201] ", "d4d39238c9", "0xD4D39238C9\n"])
def test_both_spellings_give_the_same_key(text):
    assert parse_key(text, 5) == PUBLIC_KEY


@pytest.mark.parametrize(
    "text",
    [
        "",
        "secret",
        "212,211,146,56",
        "212,211,146,56,201,7",
        "256,1,2,3,4",
        "-1,1,2,3,4",
        "d4d39238",
        "d4d39238c",
        "1,,2,3,4",
    ],
)
def test_other_spellings_are_refused_and_never_quoted(text):
    with pytest.raises(ValueError, match="CSM_WATERMARK_KEY") as error:
        parse_key(text, 5, "CSM_WATERMARK_KEY")
    assert len(text) < 3 or text not in str(error.value)


def test_length_is_named():
    with pytest.raises(ValueError, match="key is 4 bytes, must be exactly 5"):
        check_key(bytes(4), 5)


@pytest.mark.parametrize("key", [bytes(5), b"\xff" * 5, b"\x00\x00\x00\x00\x01"])
def test_regular_keys_are_refused(key):
    with pytest.raises(ValueError, match="too regular"):
        check_key(key, 5)


def test_nearly_every_random_key_is_taken():
    draw = random.Random(0)
    refused = 0
    for _ in range(500):
        try:
            check_key(draw.randbytes(5), 5)
        except ValueError:
            refused += 1
    assert refused < 10


def test_symbols_are_the_stock_packages(stock_pair):
    _, compact = stock_pair.letters_encoding(21, [[3, 1, 1, 0, 3, 1, 0, 3, 2, 1, 0, 2, 0, 3, 2, 0, 3, 0, 2, 1]])
    assert compact[0].argmax(1).tolist() == key_symbols(PUBLIC_KEY)


def test_any_rotation_spells_the_key():
    symbols = key_symbols(PUBLIC_KEY)
    for turn in range(21):
        assert symbols_key(symbols[turn:] + symbols[:turn]) == PUBLIC_KEY
