"""Text to token ids: the spoken form in CSM's template over a Llama 3 tokenizer.json. Knows no grpc and no torch.

    <BOS> [{speaker}]{text} <EOS>       no space after the bracket, BOS and EOS exactly once

(Sesame's generator.py: load_llama3_tokenizer, _tokenize_text_segment.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from models.bundle import Bundle, Voice
from models.files import PartError
from services.tokenizer.spoken.form import NothingSpeakable, NotSpeakable, SpokenForm

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
_PART = "text_tokenizer"
# Text that starts as the template does would name a second speaker.
_SPEAKER_TAG = re.compile(r"^\s*\[\s*(\d+)\s*\]")


class TextError(ValueError):
    """A segment cannot be used. `field` is its path inside a TextSegment, `description` says the limit.

    has_words: False for a text with nothing to speak.
    """

    def __init__(self, field: str, description: str, *, has_words: bool = True):
        super().__init__(f"{field}: {description}")
        self.field, self.description, self.has_words = field, description, has_words


@dataclass(frozen=True)
class Segment:
    """ids: BOS, template, EOS. spoken_text: the words that they spell."""

    ids: list[int]
    spoken_text: str


class TextTokenizer:
    """The template over one tokenizer. Has no state; safe to use from several threads.

    voices: the speakers that may be named; none: any from 0 on.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        bos_id: int,
        eos_id: int,
        max_chars: int,
        spoken: SpokenForm,
        voices: Sequence[Voice] = (),
    ):
        self._tokenizer, self._bos_id, self._eos_id = tokenizer, bos_id, eos_id
        self._spoken = spoken
        self._speakers = {voice.speaker: voice.name for voice in voices}
        self.max_chars = max_chars

    def is_quick(self, text: str) -> bool:
        """Whether `encode` takes microseconds: a short text that is its own spoken form."""
        return len(text) <= 1000 and self._spoken.is_plain(text)

    def encode(self, speaker: int, text: str, normalize: bool = True) -> Segment:
        """One segment's ids and words.

        normalize: whether the spoken form of `text` is taken; otherwise `text` itself. In both, names of control
        tokens and of speakers in `text` are never obeyed.
        Raises: TextError.
        """
        self._check(speaker, text)
        try:
            spoken = self._spoken.of(text) if normalize else self._spoken.checked(text)
        except NotSpeakable as error:
            raise TextError("text", str(error), has_words=not isinstance(error, NothingSpeakable)) from None
        if not normalize:
            spoken = _SPEAKER_TAG.sub(r"\1 ", spoken)
        ids = self._tokenizer.encode(f"[{speaker}]{spoken}", add_special_tokens=False).ids
        return Segment([self._bos_id, *ids, self._eos_id], spoken)

    def _check(self, speaker: int, text: str) -> None:
        if self._speakers and speaker not in self._speakers:
            voices = ", ".join(f"{number} ({name})" for number, name in sorted(self._speakers.items()))
            raise TextError("speaker", f"must be one of the bundle's: {voices}; not {speaker}")
        if speaker < 0:
            raise TextError("speaker", f"must be 0 or greater, not {speaker}")
        if len(text) > self.max_chars:
            raise TextError("text", f"has {len(text)} characters, at most {self.max_chars} are taken")
        if not text.strip():
            raise TextError("text", "must hold at least one character that is no white space", has_words=False)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TextError("text", f"is no Unicode text (lone surrogate at {error.start})") from error


def load_text_tokenizer(bundle: Bundle, max_chars: int) -> TextTokenizer:
    """The bundle's tokenizer.

    Everything in the file that would read control tokens out of text, put tokens around it or cut
    it is left out: `added_tokens` (which match anywhere in a text, special or not), the
    post-processor (Llama's own adds a BOS), truncation and padding.

    Raises: PartError when the file is missing, damaged, has no BOS or EOS, or has more ids than the bundle.
    """
    path = bundle.text_tokenizer.resolve()["tokenizer"]
    table = _read(path)
    added = {token["content"]: token["id"] for token in table.get("added_tokens") or []}
    for token in (BOS, EOS):
        if token not in added:
            raise PartError(_PART, str(path), f"has no {token}", "use the tokenizer.json of Llama 3")
    plain = table | {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    try:
        tokenizer = Tokenizer.from_str(json.dumps(plain))
    except Exception as error:  # the library raises bare Exceptions
        raise PartError(_PART, str(path), f"no usable tokenizer ({error})", "fetch it again") from error
    largest = max(max(tokenizer.get_vocab().values()), max(added.values()))
    if largest >= bundle.generator.text_vocab_size:
        raise PartError(
            _PART, str(path), f"has ids up to {largest}, the bundle's text_vocab_size is "
            f"{bundle.generator.text_vocab_size}", "correct bundle.toml",
        )  # fmt: skip
    return TextTokenizer(tokenizer, added[BOS], added[EOS], max_chars, SpokenForm(bundle.languages), bundle.voices)


def _read(path: Path) -> dict:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(table, dict) or "model" not in table:
            raise ValueError("no tokenizer in it")
    except (OSError, ValueError) as error:
        raise PartError(_PART, str(path), f"not a tokenizer.json ({error})", "fetch it again") from error
    return table
