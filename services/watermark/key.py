"""The key: the few bytes that a watermark repeats. Knows no torch."""

from __future__ import annotations

import re

import numpy as np

from services.watermark.evidence import fit, tally

# Published by Sesame with CSM. Everyone can read, and forge, a mark made with it.
PUBLIC_KEY = bytes([212, 211, 146, 56, 201])


def parse_key(text: str, length: int, field: str = "key") -> bytes:
    """A key written as decimal bytes ("212,211,146,56,201") or as hex ("d4d39238c9").

    length: bytes of the model's message. field: the key's name in errors, which never quote the key.
    Raises: ValueError naming field and limit.
    """
    text = text.strip().strip("[]")
    if "," in text:
        parts = [part.strip() for part in text.split(",")]
        if not all(re.fullmatch(r"\d{1,3}", part) and int(part) <= 255 for part in parts):
            raise ValueError(f"{field} must be numbers from 0 to 255 with commas between")
        key = bytes(int(part) for part in parts)
    elif re.fullmatch(r"(0x)?([0-9a-fA-F]{2})+", text):
        key = bytes.fromhex(text.removeprefix("0x"))
    else:
        raise ValueError(f"{field} must be {length} bytes, as hex digits or as numbers with commas between")
    return check_key(key, length, field)


def check_key(key: bytes, length: int, field: str = "key") -> bytes:
    """Returns the key. Raises: ValueError when it has another length, or is too regular to be distinguished from chance."""
    if len(key) != length:
        raise ValueError(f"{field} is {len(key)} bytes, must be exactly {length}")
    symbols = key_symbols(key)
    # A key whose bytes are all alike cannot be distinguished from audio whose symbols are alike by chance. One message of
    # the key with one symbol misread must be proof; it is for 99 of 100 random keys.
    if fit(tally(np.eye(5)[symbols].T, len(symbols)), symbols).threshold > 1 - 0.99 / len(symbols):
        raise ValueError(
            f"{field} is too regular to be distinguished from chance, as 1 of 100 random keys is: draw {length} other random bytes"
        )
    return key


def key_symbols(key: bytes) -> list[int]:
    """The message of the key: two bits a symbol, high bits first, as 1 to 4; then 0, the end."""
    return [(byte >> shift & 3) + 1 for byte in key for shift in (6, 4, 2, 0)] + [0]


def symbols_key(symbols: list[int]) -> bytes | None:
    """The key of one period of symbols, at any rotation; None unless exactly one symbol is the end."""
    if symbols.count(0) != 1:
        return None
    end = symbols.index(0)
    bits = [symbol - 1 for symbol in symbols[end + 1 :] + symbols[:end]]
    quads = [bits[i : i + 4] for i in range(0, len(bits), 4)]
    return bytes(a << 6 | b << 4 | c << 2 | d for a, b, c, d in quads)
