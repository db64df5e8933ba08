"""Which speaker a command line means."""

from __future__ import annotations

from csm_client import SpeechClient

from gateway.cli.errors import CommandError
from gateway.cli.terminal import plain_line


async def speaker_of(client: SpeechClient, voice: str | None, speaker: int | None) -> int:
    """voice: a name, in any case. Raises: CommandError with the names there are, SpeechError."""
    if voice is None:
        return speaker or 0
    answer = await client.voices()
    numbers = {one.name.lower(): one.speaker for one in answer.voices}
    if voice.lower() not in numbers:
        names = ", ".join(one.name for one in answer.voices) or "none: the voice comes from --context"
        raise CommandError(f"--voice {voice}: no such voice at {client.address}; it has {plain_line(names)}")
    return numbers[voice.lower()]
