"""What ends a command besides the client's and the services' errors."""

from __future__ import annotations


class CommandError(Exception):
    """The command line asks for what cannot be done; exit code 2. The message is one line."""
