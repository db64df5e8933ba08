"""Read the sentences of Jane Austen's novels (public domain) out of Debian's r-cran-janeaustenr.

R keeps a package's data in a "lazy-load" database: zlib-compressed serialised vectors, one after
another. Only the strings in them are wanted, so this looks for R's string records (type 9 in the
low byte of a 4-byte flag word, then a 4-byte length) rather than decoding the whole format.
"""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

_STRING = re.compile(rb"\x00[\x04\x08]\x00\x09(.{4})", re.DOTALL)
_END = re.compile(r"(?<=[.!?])[\"']?\s+(?=[\"'A-Z])")
MAX_CHARACTERS = 190


def vectors(database: bytes) -> list[bytes]:
    """Every compressed object in an .rdb file, decompressed."""
    found, at = [], 0
    while at < len(database) - 6:
        engine = zlib.decompressobj()
        data = engine.decompress(database[at + 4 :])
        found.append(data)
        at = len(database) - len(engine.unused_data)
    return found


def lines(vector: bytes) -> list[str]:
    """The strings of one serialised character vector, in order."""
    out = []
    for match in _STRING.finditer(vector):
        (length,) = struct.unpack(">i", match.group(1))
        if 0 <= length < 2000:
            out.append(vector[match.end() : match.end() + length].decode("utf-8", "replace"))
    return out


def sentences(folder: Path) -> list[str]:
    """Sentences of 8 to 190 characters from the unpacked Debian package under `folder`."""
    (path,) = folder.rglob("janeaustenr/data/Rdata.rdb")
    out: list[str] = []
    for vector in vectors(path.read_bytes()):
        paragraph: list[str] = []
        for line in [*lines(vector), ""]:
            if line.strip():
                paragraph.append(line.strip())
                continue
            text = re.sub(r"\s+", " ", " ".join(paragraph).replace("_", "").replace("--", ", "))
            paragraph = []
            for sentence in _END.split(text):
                sentence = re.sub(r"\s+([,;.!?])", r"\1", sentence.replace('"', "").strip(" '"))
                if 8 <= len(sentence) <= MAX_CHARACTERS and re.fullmatch(r"[A-Za-z ,.;:!?'-]+", sentence):
                    out.append(sentence)
    return sorted(set(out))
