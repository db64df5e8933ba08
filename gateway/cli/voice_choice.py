"""Which voice a command line means."""

from __future__ import annotations

from csm_client import SpeechClient

from gateway.cli.errors import CommandError
from gateway.cli.terminal import plain_line


async def chosen_voice(client: SpeechClient, voice: str | None, speaker: int | None) -> tuple[int | None, str | None]:
    """(speaker, voice) of a request: the number of a bundle's voice, or the name of another.

    voice: a name, in any case. Raises: CommandError when the deployment knows no names but its bundle's, SpeechError.
    """
    if voice is None:
        return speaker or 0, None
    answer = await client.voices()
    numbers = {one.name.lower(): one.speaker for one in answer.voices}
    if voice.lower() in numbers:
        return numbers[voice.lower()], None
    if answer.version:  # it looks among the voices that this caller has made, and refuses what it does not know
        return None, voice
    names = ", ".join(one.name for one in answer.voices) or "none: the voice comes from --context"
    raise CommandError(f"--voice {voice}: no such voice at {client.address}; it has {plain_line(names)}")
