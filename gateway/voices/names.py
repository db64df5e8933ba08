"""Which voice a name means: the bundle's own, an alias of the operator's, or one of the caller's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from csm.common.v1 import common_pb2

from gateway.speech.context import Segment
from gateway.speech.prompt_tokenizer import Heard, PromptTokenizer
from gateway.voices.library import LibraryError, VoiceLibrary
from gateway.voices.voice import NamedVoice
from models.bundle import Bundle
from services.runtime.errors import InvalidArgument, UnavailableError
from services.runtime.settings import SettingError

_PROMPTS = 256  # voices whose prompts are kept
# Clients with OpenAI's API let no other names through; clients of Riva ask for a Magpie voice when nothing is set.
_OPENAI_NAMES = "alloy ash ballad cedar coral echo fable marin nova onyx sage shimmer verse".split()


@dataclass(frozen=True)
class Choice:
    """A speaker, and what the model hears before it speaks. key: the same for calls with the same prompt."""

    speaker: int
    prompt: list[Segment]
    key: str | None = None


class VoiceNames:
    """aliases: `name=voice`, with commas between; a name may have `*`. They are looked at last.

    The names that ready clients know stand for the bundle's own voices in turn, unless an alias says otherwise.
    """

    def __init__(self, bundle: Bundle, library: VoiceLibrary, aliases: str | None):
        """Raises: SettingError."""
        self._bundle, self._library = bundle, library
        self._own = {voice.name.lower(): voice.speaker for voice in bundle.voices}
        self._aliases = _parse(aliases or "")
        if own := list(self._own):
            self._aliases += [(name, own[index % len(own)]) for index, name in enumerate(_OPENAI_NAMES)]
            self._aliases.append(("magpie-*", own[0]))
        self._prompts: OrderedDict[str, list[Segment]] = OrderedDict()

    def is_reserved(self, name: str) -> bool:
        """Whether the bundle has a voice of that name, so that no other may have it."""
        return name in self._own

    def known(self, owner: str) -> list[str]:
        """Names that the caller may use, aliases aside."""
        return [*self._own, *(voice.name for voice in self._library.voices(owner))]

    async def choose(
        self, name: str, speaker: int | None, owner: str, tokenizer: Callable[[], PromptTokenizer], path: str
    ) -> Choice:
        """The voice called `name`; without a name, `speaker`'s. path: of what holds both, for errors.

        Raises: CallError.
        """
        if not name:
            return Choice(speaker or 0, [])
        if speaker is not None:
            raise InvalidArgument(f"{path}.voice", "and speaker cannot both be given")
        wanted = name.lower().removeprefix(f"{self._bundle.id.lower()}.")
        for candidate in (wanted, self._alias(wanted)):
            if candidate in self._own:
                return Choice(self._own[candidate], [])
            if candidate is not None and (voice := await self._look_up(owner, candidate)) is not None:
                return Choice(voice.speaker, await self._prompt(voice, tokenizer(), path), voice.id)
        names = ", ".join(self.known(owner)) or "none yet"
        raise InvalidArgument(f"{path}.voice", f"must be one of the voices here ({names}), not {name[:64]!r}")

    def _alias(self, name: str) -> str | None:
        return next((voice for pattern, voice in self._aliases if fnmatchcase(name, pattern)), None)

    async def _look_up(self, owner: str, name: str) -> NamedVoice | None:
        try:
            return await self._library.get(owner, name)
        except LibraryError as error:
            raise UnavailableError(f"the voice library cannot be read: {error}", reason="VOICE_LIBRARY") from None

    async def _prompt(self, voice: NamedVoice, tokenizer: PromptTokenizer, path: str) -> list[Segment]:
        """Encoded once a gateway: what is kept is the prompt's tokens and frames."""
        if voice.id in self._prompts:
            self._prompts.move_to_end(voice.id)
            return self._prompts[voice.id]
        try:
            wav = await self._library.clip(voice)
        except LibraryError as error:
            raise UnavailableError(f"the voice library cannot be read: {error}", reason="VOICE_LIBRARY") from None
        clip = common_pb2.AudioClip(wav=wav)
        prompt = await tokenizer.heard([Heard(voice.speaker, voice.transcript, clip, f"{path}.voice")])
        self._prompts[voice.id] = prompt
        while len(self._prompts) > _PROMPTS:
            self._prompts.popitem(last=False)
        return prompt


def _parse(aliases: str) -> list[tuple[str, str]]:
    parsed = []
    for part in filter(None, (part.strip() for part in aliases.split(","))):
        pattern, equals, voice = part.partition("=")
        if not (equals and pattern.strip() and voice.strip()):
            raise SettingError(f"CSM_VOICE_ALIASES={aliases!r}: {part!r} is not NAME=VOICE")
        parsed.append((pattern.strip().lower(), voice.strip().lower()))
    return parsed
