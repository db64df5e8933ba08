"""Prove that the acceptance sentences are not in the training text.

Four ways a sentence could come in, each looked at: it is a line of the books or chats; it is one of the short
answers; a template can make it; or the word chains draw it by chance, so the lines of every seed that was used are
written again, the ban on held-out sentences lifted, and compared.

    python unseen.py --text TEXT --seeds 0 50000000 [--workers 15 --shards 45]
"""

from __future__ import annotations

import argparse
import re
from itertools import islice
from pathlib import Path

import text
from text import ACCEPTANCE, SHORT, TEMPLATES, Writer

LINES = 450  # no shard of 900 s holds as many
_NUMBER = r"[\d,]+"
_CLOCK = r"\d+(:\d\d)?( [ap]\.?m\.?)?"
_DATE = rf"(({'|'.join(text.MONTHS)}) \d+(st|nd|rd|th)?(, \d+)?|the \d+(st|nd|rd|th) of ({'|'.join(text.MONTHS)}))"


def _any(words: list[str]) -> str:
    return "(" + "|".join(sorted(map(re.escape, words), key=len, reverse=True)) + ")"


def _phrase(words: list[str]) -> str:
    """Any of the words, and any pair of them: VERBS was split at blanks."""
    return f"{_any(words)}( {_any(words)})?"


SLOTS = {
    "n": _NUMBER, "k": r"\d+", "t": _CLOCK, "d": _DATE, "m": r"\$\d+(\.\d\d)?",
    "p": rf"((Mr|Mrs|Ms|Dr)\. )?{_any([*text.NAMES, *text.SURNAMES])}( {_any(text.SURNAMES)})?",
    "day": _any(text.DAYS), "place": _any(text.PLACES), "thing": _any(text.THINGS), "things": _any(text.PLURALS),
    "adj": _any(text.ADJECTIVES), "verb": _phrase(text.VERBS), "color": _any(text.COLORS), "word": "[a-z']+",
}  # fmt: skip


def template_for(sentence: str) -> str | None:
    """A template that can make the sentence, letter case and the last sign apart."""
    for pattern in TEMPLATES:
        parts = re.split(r"\{(\w+)\}", pattern.rstrip(".?!"))
        expression = "".join(SLOTS[part] if i % 2 else re.escape(part) for i, part in enumerate(parts))
        if re.fullmatch(expression, sentence.rstrip(".?!"), re.IGNORECASE):
            return pattern
    return None


def made_by_rule(sentences: list[str]) -> list[str]:
    """Those that are a short answer or fit a template."""
    short = {text.key_of(line) for line in SHORT}
    return [s for s in sentences if text.key_of(s) in short or template_for(s)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--workers", type=int, default=15)
    parser.add_argument("--shards", type=int, default=45)
    args = parser.parse_args()
    found = {f"made by rule: {s}" for s in made_by_rule(ACCEPTANCE)}
    wanted, lines = {text.key_of(s): s for s in ACCEPTANCE}, 0
    writer = Writer(args.text, 0)
    for name in ("books", "chats"):
        found |= {f"in the {name}: {line}" for line in getattr(writer, name) if text.key_of(line) in wanted}
    for first in args.seeds:
        for seed in (first + w * 100_000 + s for w in range(args.workers) for s in range(args.shards)):
            writer.draw.seed(seed)
            writer.held_out = set()
            for line in islice(iter(writer), LINES):
                lines += 1
                if (key := text.key_of(line)) in wanted:
                    found.add(f"written with seed {seed}: {wanted[key]}")
    print(f"{len(ACCEPTANCE)} sentences, {lines} lines of training text: {len(found)} found", *sorted(found), sep="\n")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
