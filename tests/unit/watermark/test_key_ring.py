"""Several keys: how they are written, and that no message and no id gives one away."""

import pytest

from services.watermark.key_ring import MAX_KEYS, parse_ring

NEW, OLD, OLDEST = "0b6ed1952c", "d4d39238c9", "212,211,146,56,202"
HEX = [NEW, OLD, bytes([212, 211, 146, 56, 202]).hex()]


@pytest.mark.parametrize(
    "text", [f"{NEW}\n{OLD}\n{OLDEST}\n", f"{NEW};{OLD}; {OLDEST}", f"# keys\n\n{NEW}  # since May\n{OLD}\n{OLDEST}"]
)
def test_the_newest_is_the_first(text):
    assert [key.secret.hex() for key in parse_ring(text, 5)] == HEX


def test_ids_are_names_or_derived_always_the_same(caplog):
    named = parse_ring(f"2026-11 = {NEW}\n{OLD}\nspring={OLDEST}", 5)
    assert [key.id for key in named][::2] == ["2026-11", "spring"]
    (derived,) = parse_ring(OLD, 5)
    assert derived.id == named[1].id == parse_ring("212,211,146,56,201", 5)[0].id
    assert len(derived.id) == 6 and derived.id not in OLD  # few bits, so that many keys share it
    assert OLD not in repr(named) and NEW not in repr(named)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be 5 bytes"),
        ("# none\n", "must be 5 bytes"),
        (f"{NEW}\n{OLD}00", "key, key 2 is 6 bytes"),
        (f"{NEW}\nopen sesame", "key, key 2 must be 5 bytes"),
        (f"{NEW};{NEW}", "the same key twice"),
        (f"a={NEW};a={OLD}", "the same id twice"),
        (f"a b={NEW}", "must be 5 bytes"),
        (";".join(bytes([n, 200 - n, 7 * n, 31, 99]).hex() for n in range(1, MAX_KEYS + 2)), "at most 8"),
    ],
)
def test_what_is_no_ring_is_said_without_its_keys(text, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_ring(text, 5)
    assert NEW not in str(error.value) and OLD not in str(error.value)
