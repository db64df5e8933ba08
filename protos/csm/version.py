"""The version of this software; every distribution and every server reads it here."""

__version__ = "0.2.0"
