"""The keys of a deployment: the newest marks, and all are looked for. Knows no torch.

    2026-11 = d4d39238c9            # NAME = KEY, one a line, newest first; what follows # is a comment
    212,211,146,56,202              # without a name: its id is derived from it

An id is public: it stands in answers and in the audit trail. One that is derived is a slow hash of which few bits are
kept: many keys share it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from services.watermark.key import parse_key

MAX_KEYS = 8  # each is another search of what holds no mark
_NAME = re.compile(r"([A-Za-z0-9][\w.-]{0,31})\s*=\s*(.*)", re.ASCII)
_ID_BYTES = 3


@dataclass(frozen=True)
class Key:
    """id: public. secret: the bytes that marks repeat; not in its repr."""

    id: str
    secret: bytes

    def __repr__(self) -> str:
        return f"Key({self.id!r})"


def parse_ring(text: str, length: int, field: str = "key") -> tuple[Key, ...]:
    """Keys, newest first, one a line or with `;` between. length: bytes of a key.

    Raises: ValueError, which never quotes a key: when there is none, one cannot be used, or two are alike.
    """
    keys: list[Key] = []
    lines = [line.partition("#")[0].strip() for line in re.split(r"[\n;]", text)]
    for number, line in enumerate(filter(None, lines), 1):
        named = _NAME.fullmatch(line)
        where = field if number == 1 else f"{field}, key {number}"
        secret = parse_key(named[2] if named else line, length, where)
        keys.append(Key(named[1] if named else _derived_id(secret), secret))
    if not keys:
        raise ValueError(f"{field} must be {length} bytes, as hex digits or as numbers with commas between")
    if len(keys) > MAX_KEYS:
        raise ValueError(f"{field} has {len(keys)} keys, must have at most {MAX_KEYS}")
    for what, values in (("key", [key.secret for key in keys]), ("id", [key.id for key in keys])):
        if len(set(values)) < len(values):
            raise ValueError(f"{field} has the same {what} twice" + (": name the keys" if what == "id" else ""))
    return tuple(keys)


def _derived_id(secret: bytes) -> str:
    """Six hex digits. Five bytes can be tried out, so a try must cost something (scrypt, 16 MiB)."""
    return hashlib.scrypt(secret, salt=b"csm watermark key id", n=2**14, r=8, p=1, dklen=_ID_BYTES).hex()
