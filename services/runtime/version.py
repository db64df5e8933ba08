"""The version of the server's software, as GetModelInfo, ListVoices and spans report it."""

from __future__ import annotations

from functools import cache
from importlib import metadata


@cache
def version() -> str:
    """Such as `0.2.0`; empty in a source tree that is not installed."""
    try:
        return metadata.version("csm-serve")
    except metadata.PackageNotFoundError:
        return ""
