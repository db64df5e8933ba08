"""The file of bearer tokens: TOML, one table a token.

    [radio]                                  # its name, which spans carry
    sha256 = ["9f86d081…", "60303ae2…"]      # of the tokens that are good; `token = "…"` gives one itself
    max_streams = 20                         # utterances and verifications at once
    characters_per_minute = 12000            # of text to speak, in any 60 seconds

Several tokens of one name are good at once and share its limits: that is how a token is rotated.
Knows no gRPC.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.runtime.reloadable_file import InvalidFile

_KEYS = ("sha256", "token", "max_streams", "characters_per_minute")
_MAX = 10**9  # of a limit: beyond any use, and what a double can count
_MIN_CHARACTERS = 16  # of a token in the file; a hash does not show its length


@dataclass(frozen=True)
class Token:
    """One table. hashes: SHA-256 of the tokens that are good. None is no limit."""

    name: str
    hashes: tuple[bytes, ...]
    max_streams: int | None
    characters_per_minute: int | None


def read_tokens(path: Path) -> list[Token]:
    """All tables of the file. An empty file gives none: every call is refused. Raises: InvalidFile, never with a token in its message."""
    try:
        tables = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise InvalidFile(f"{path}: {error.strerror}") from None
    except RecursionError:
        raise InvalidFile(f"{path}: not TOML that can be read: nested too deep") from None
    except ValueError as error:
        # What a decoder quotes of a file of secrets stays here; where it stopped does not.
        where = re.search(r"\(at [^)]*\)", str(error))
        raise InvalidFile(f"{path}: not TOML {where[0] if where else ''}".rstrip()) from None
    tokens = [_token(path, name, table) for name, table in tables.items()]
    hashes = [known for token in tokens for known in token.hashes]
    if len(set(hashes)) < len(hashes):
        raise InvalidFile(f"{path}: the same token is given twice")
    return tokens


def _token(path: Path, name: str, table: Any) -> Token:
    where = f"{path}: [{name}]"
    if not re.fullmatch(r"[\w.-]{1,64}", name, re.ASCII) or not isinstance(table, dict):
        raise InvalidFile(f"{path}: {name!r:.70} must be a table, its name letters, digits, '.', '_', '-'")
    if unknown := sorted(set(table) - set(_KEYS)):
        raise InvalidFile(f"{where}: {unknown[0]!r:.70} is none of {', '.join(_KEYS)}")
    hashes = [_digest(where, text) for text in _texts(where, table, "sha256")]
    for text in _texts(where, table, "token"):
        if not re.fullmatch(r"[!-~]+", text) or len(text) < _MIN_CHARACTERS:
            raise InvalidFile(f"{where}: token must be one word of visible ASCII, {_MIN_CHARACTERS} characters or more")
        hashes.append(hashlib.sha256(text.encode()).digest())
    if not hashes:
        raise InvalidFile(f"{where}: needs sha256 or token")
    return Token(name, tuple(hashes), *(_limit(where, table, key) for key in ("max_streams", "characters_per_minute")))


def _texts(where: str, table: dict[str, Any], key: str) -> list[str]:
    value = table.get(key, [])
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise InvalidFile(f"{where}: {key} must be a string or a list of strings")
    return values


def _digest(where: str, text: str) -> bytes:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise InvalidFile(f"{where}: sha256 must be 64 hexadecimal digits")
    return bytes.fromhex(text)


def _limit(where: str, table: dict[str, Any], key: str) -> int | None:
    value = table.get(key)
    if value is not None and (type(value) is not int or not 1 <= value <= _MAX):
        raise InvalidFile(f"{where}: {key} must be a whole number, 1 to {_MAX}; without it there is no limit")
    return value
