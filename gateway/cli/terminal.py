"""Consoles for the `csm` command. Much of what it prints was written by others: a server, a file of spans."""

from __future__ import annotations

import re
from typing import Any

from rich.console import Console

# Control letters (ESC among them, which begins a terminal's commands), halves of surrogate pairs,
# and those that turn the direction of what follows. Tab and newline stay.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def plain(value: object) -> str:
    """Anything as text; letters that would steer a terminal or a page are replaced."""
    return _STEERING.sub("\ufffd", str(value))


def plain_line(value: object) -> str:
    """The same on one line."""
    return plain(" ".join(str(value).split()))


class PlainConsole(Console):
    """Prints text as it is: no markup, no breaking of lines, and nothing in it steers the terminal."""

    def __init__(self, **options: Any):
        super().__init__(highlight=False, markup=False, soft_wrap=True, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(plain(one) if isinstance(one, str) else one for one in objects), **options)
