"""The version of the server's software, as GetModelInfo, ListVoices and spans report it."""

from __future__ import annotations

from csm.version import __version__


def version() -> str:
    """Such as `0.2.0`."""
    return __version__
