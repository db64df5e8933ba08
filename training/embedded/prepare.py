"""Make the word tables that `text.Writer` draws from. Run once, on a machine with packages at hand.

Sources: symspellpy (MIT; word and bigram counts), chatterbot-corpus (BSD) and r-cran-janeaustenr
(novels in the public domain). Words that the teacher's dictionaries do not know are dropped.

    python prepare.py --symspell DIR --chatterbot DIR --austen DIR --hibari DIR --out DIR
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections import defaultdict
from pathlib import Path

import books
import yaml

FOLLOWERS = 24
AVOID = set(
    """sex sexy sexual porn porno pornstar anal nude nudes naked fuck fucking shit bitch cock dick pussy tits boobs
ass cum blowjob blowjobs orgasm rape nigger cunt xxx whore slut penis vagina masturbation hentai bdsm fetish viagra
cialis levitra phentermine tramadol casino poker gambling""".split()
)


def known_words(hibari: Path) -> set[str]:
    """Lower-case words the teacher's American dictionaries can read."""
    known: set[str] = set()
    for tier in ("gold", "silver"):
        with gzip.open(hibari / f"assets/lexicon_us_{tier}.json.gz", "rt", encoding="utf-8") as file:
            known |= {word for word in json.load(file) if re.fullmatch(r"[a-z]+('[a-z]+)?", word)}
    return (known | {"a", "i"}) - AVOID


def chats(folder: Path) -> set[str]:
    lines: set[str] = set()
    for path in folder.rglob("english/*.yml"):
        if path.stem in {"ai", "botprofile", "gossip", "politics", "psychology", "emotion"}:
            continue  # a bot speaking of itself, and topics a demo voice should not volunteer
        for talk in yaml.safe_load(path.read_text())["conversations"]:
            for turn in talk:
                for line in re.split(r"(?<=[.!?])\s+", str(turn).strip()):
                    words = set(re.findall("[a-z]+", line.lower()))
                    if 3 < len(line) < 180 and re.fullmatch(r"[A-Za-z0-9 ,.;:!?'-]+", line) and not words & AVOID:
                        lines.add(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("symspell", "chatterbot", "austen", "hibari", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    known = known_words(args.hibari)

    (table,) = args.symspell.rglob("frequency_dictionary_en_82_765.txt")
    words = [line.split()[0] for line in table.read_text("utf-8-sig").splitlines()]
    words = [word for word in words if word in known and (len(word) > 2 or word in known)][:50000]
    kept = set(words[:25000])

    (table,) = args.symspell.rglob("frequency_bigramdictionary_en_243_342.txt")
    pairs: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for line in table.read_text("utf-8-sig").splitlines():
        first, second, count = line.split()
        if first in kept and second in kept:
            pairs[first].append((float(count), second))
    chains = {}
    for first, followers in pairs.items():
        best = sorted(followers, reverse=True)[:FOLLOWERS]
        # The fourth root flattens the counts: variety matters here, not likelihood.
        chains[first] = [[word for _, word in best], [round(count**0.25) for count, _ in best]]

    (args.out / "words.txt").write_text("\n".join(words))
    (args.out / "chains.json").write_text(json.dumps(chains))
    (args.out / "books.txt").write_text("\n".join(books.sentences(args.austen)))
    (args.out / "chats.txt").write_text("\n".join(sorted(chats(args.chatterbot))))
    for path in sorted(args.out.iterdir()):
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
