"""The spoken form of a text: the words that a reader would say."""

from __future__ import annotations

from functools import lru_cache

from services.tokenizer.spoken.clean import clean
from services.tokenizer.spoken.emoji import strip_emoji
from services.tokenizer.spoken.english import read_english
from services.tokenizer.spoken.english.quick import is_plain_english
from services.tokenizer.spoken.fold import fold
from services.tokenizer.spoken.markdown import strip_markdown
from services.tokenizer.spoken.script import foreign_letters, scripts_of
from services.tokenizer.spoken.tags import strip_tags

_MOST_ROUNDS = 4
_NOTHING = "has no words: there is nothing to speak in it"


class NotSpeakable(ValueError):
    """The text has no words, or none that the languages are written in. The message says which."""


class NothingSpeakable(NotSpeakable):
    """The text has no words at all."""


class SpokenForm:
    """Texts to spoken words in the languages of one bundle (BCP 47 tags). Without state; for use from several threads."""

    def __init__(self, languages: tuple[str, ...]):
        self._scripts = scripts_of(languages)
        self._claim = ", ".join(languages)
        self._is_english = any(tag.split("-")[0].lower() == "en" for tag in languages)
        self.of = lru_cache(maxsize=1024)(self._of)

    def is_plain(self, text: str) -> bool:
        """Whether the text is its own spoken form, as told in microseconds; False decides nothing."""
        return self._is_english and is_plain_english(text)

    def _of(self, text: str) -> str:
        """The spoken form. Its own spoken form is itself.

        Raises: NotSpeakable.
        """
        if self.is_plain(text):
            return text
        spoken = text
        for _ in range(_MOST_ROUNDS):
            before, spoken = spoken, self._round(spoken)
            if spoken == before:
                break
        if not any(char.isalnum() for char in spoken):
            raise NothingSpeakable(_NOTHING)
        return spoken

    def checked(self, text: str) -> str:
        """`text` itself. Raises: NotSpeakable, when it has nothing to speak, is in a foreign script or has a NUL."""
        if "\0" in text:
            raise NotSpeakable("must not contain the character U+0000")
        if not any(char.isalnum() for char in text):
            raise NothingSpeakable(_NOTHING)
        self._check_script(text)
        return text

    def _check_script(self, text: str) -> None:
        if foreign := foreign_letters(text, self._scripts):
            script, letters = foreign
            shown = letters if len(letters) <= 12 else letters[:12] + "…"
            raise NotSpeakable(f"has letters of the {script} script ({shown}); the voices speak {self._claim}")

    def _round(self, text: str) -> str:
        text = clean(text)
        if not text.strip():
            return ""
        if "<" in text or "[" in text or "&" in text:
            text = clean(strip_tags(text))  # an entity may be any character
        text = strip_markdown(strip_emoji(fold(text)))
        if self._is_english:
            text = read_english(text)
        else:
            text = " ".join(text.split())
        self._check_script(text)
        return text
