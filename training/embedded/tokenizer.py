"""Write tokenizer.json: one id a byte, letters folded to lower case, those that stand alone written as they sound.

Bytes cost little against phonemes and leave no word unseen. Ids 0-255 are bytes, then BOS and EOS
and Llama 3's other control tokens, which nothing emits.

    python tokenizer.py OUT.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

BOS, EOS = 256, 257
VOCABULARY = 260
# Letters said one by one (F B I, nine A M) as they sound: the training text has hardly any that stand alone. "a" and "i" are
# words too, so they count as letters only beside another letter, which they are looked at before.
_ALONE = r"(?<![a-z'\u2019-]){0}(?![a-z])(?!'[a-rt-z])"
_NAMES = {
    "b": "bee", "c": "see", "d": "dee", "e": "ee", "f": "eff", "g": "gee", "h": "aitch", "j": "jay", "k": "kay", "l": "ell",
    "m": "em", "n": "en", "o": "oh", "p": "pee", "q": "cue", "r": "ar", "s": "ess", "t": "tee", "u": "you", "v": "vee",
    "w": "double you", "x": "ex", "y": "why", "z": "zee",
}  # fmt: skip
_BESIDE = (r"(?<=\b[b-hj-z] ){0}(?![a-z'-])", r"(?<![a-z'-]){0}(?= [b-hj-z](?![a-z]))")
_LIGATURES = {
    "\u00df": "ss",
    "\u00e6": "ae",
    "\u0153": "oe",
    "\u00f8": "o",
    "\u0142": "l",
    "\u0111": "d",
    "\u00f0": "th",
    "\u00fe": "th",
    "\u0131": "i",
}
_CONTROL = ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|eot_id|>"]


def make() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.NFD(),
            normalizers.StripAccents(),  # the training text is ASCII
            *(normalizers.Replace(sign, letters) for sign, letters in _LIGATURES.items()),
            normalizers.Replace(Regex("[\u2018\u2019]"), "'"),
            normalizers.Replace(Regex("[\u201c\u201d]"), '"'),
            normalizers.Replace(Regex("[\u2013\u2014]"), ", "),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Replace(Regex(r"(?<![a-z'-])a i(?![a-z-])"), "ay eye"),
            *(
                normalizers.Replace(Regex(where.format(letter)), name)
                for letter, name in (("a", "ay"), ("i", "eye"))
                for where in _BESIDE
            ),
            *(normalizers.Replace(Regex(_ALONE.format(letter)), name) for letter, name in _NAMES.items()),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _CONTROL])
    assert tokenizer.token_to_id(_CONTROL[0]) == BOS and tokenizer.get_vocab_size() == VOCABULARY
    return tokenizer


def segment(tokenizer: Tokenizer, speaker: int, text: str) -> list[int]:
    """Ids of one CSM text segment."""
    return [BOS, *tokenizer.encode(f"[{speaker}]{text}", add_special_tokens=False).ids, EOS]


if __name__ == "__main__":
    make().save(str(Path(sys.argv[1])))
