"""What a file says of itself: that its speech is synthetic, and by what. Players show it, programs can read it.

The mark inside the audio is the proof; a tag is lost with the first conversion.
"""

from __future__ import annotations

import struct

from services.runtime.version import version

# IPTC's term for media that a trained model has made: https://cv.iptc.org/newscodes/digitalsourcetype
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def comment(model: str) -> str:
    """In a sentence. model: the bundle's id, or empty."""
    return f"Synthetic speech by Sesame CSM{f' ({model})' if model else ''}, watermarked"


def maker() -> str:
    """Which software."""
    return f"csm-serve {version()}"


def tags(model: str) -> dict[str, str]:
    """Names and values, as Vorbis comments and ID3 have them."""
    return {"comment": comment(model), "software": maker(), "DIGITALSOURCETYPE": SOURCE_TYPE}


def riff_info(model: str) -> bytes:
    """The same as a LIST chunk of a WAV file."""
    body = b"INFO"
    for name, value in ((b"ICMT", f"{comment(model)}; {SOURCE_TYPE}"), (b"ISFT", maker())):
        data = value.encode("ascii", "replace") + b"\0"
        data += b"\0" * (len(data) % 2)
        body += name + struct.pack("<I", len(data)) + data
    return b"LIST" + struct.pack("<I", len(body)) + body
