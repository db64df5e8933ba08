"""Voices by name: where they are kept, and the RPCs for them."""
