"""The file of tokens: what it may say, and that no error message holds a token."""

import hashlib

import pytest

from gateway.tokens import Token, read_tokens
from services.runtime.reloadable_file import InvalidFile

SECRET = "an-unknown-token"
HASH = hashlib.sha256(SECRET.encode()).hexdigest()
OTHER = hashlib.sha256(b"another").hexdigest()


@pytest.fixture
def parse(tmp_path):
    path = tmp_path / "tokens.toml"

    def run(text):
        path.write_text(text)
        return read_tokens(path)

    return run


def test_one_table_a_token(parse):
    assert parse(
        f'[radio]\ntoken = "{SECRET}"\nsha256 = "{OTHER}"\nmax_streams = 2\n["a.b"]\nsha256 = ["{"ab" * 32}"]'
    ) == [
        Token("radio", (bytes.fromhex(OTHER), bytes.fromhex(HASH)), 2, None),
        Token("a.b", (bytes.fromhex("ab" * 32),), None, None),
    ]


@pytest.mark.parametrize("text", ["", "# all are taken out\n"])
def test_a_file_without_tables_has_no_token(parse, text):
    assert parse(text) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f'[radio]\ntoken = "{SECRET}', r"not TOML \(at"),
        ("[radio]", r"\[radio\]: needs sha256 or token"),
        ('["a b"]\nsha256 = "' + HASH + '"', "must be a table"),
        ("radio = 1", "must be a table"),
        ('[radio]\nsha256 = "abc"', "64 hexadecimal digits"),
        ('[radio]\ntoken = "short"', "16 characters or more"),
        (f'[radio]\ntoken = "{SECRET} {SECRET}"', "one word"),
        ("[radio]\ntoken = 5", "token must be a string or a list of strings"),
        (f'[radio]\ntoken = "{SECRET}"\nmax_streams = 0', "max_streams must be a whole number, 1 to 1000000000"),
        (f'[radio]\ntoken = "{SECRET}"\nmax_streams = true', "max_streams must be a whole number"),
        (f'[radio]\ntoken = "{SECRET}"\ncharacters_per_minute = 1{"0" * 400}', "characters_per_minute must be a whole"),
        (f'[radio]\ntoken = "{SECRET}"\nmax_streams = 1{"0" * 9999}', "not TOML"),
        ("a = " + "[" * 50_000, "nested too deep"),
        (f'[radio]\ntoken = "{SECRET}"\ncharacters = 5', "'characters' is none of sha256, token, max_streams"),
        (f'[radio]\ntoken = "{SECRET}"\n[tv]\nsha256 = "{HASH}"', "is given twice"),
    ],
)
def test_what_is_wrong_is_named_and_keeps_the_secret(parse, text, why):
    with pytest.raises(InvalidFile, match=why) as caught:
        parse(text)
    assert "tokens.toml" in str(caught.value)
    assert SECRET not in str(caught.value) and HASH not in str(caught.value)


def test_no_file(tmp_path):
    with pytest.raises(InvalidFile, match="No such file"):
        read_tokens(tmp_path / "none.toml")
