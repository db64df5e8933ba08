"""What there is to say: the sentences, who says which, and the little conversations."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

from support.spoken_cases import Case, read_cases

HERE = Path(__file__).parent
SPEAKERS = (0, 1, 2, 3)
TURNS = 4  # of one conversation: the first has no context, the last has three turns


@dataclass(frozen=True)
class Line:
    """One utterance to make. number: of its sentence."""

    number: int
    kind: str
    text: str
    speaker: int

    @property
    def seed(self) -> int:
        return 1000 * self.speaker + self.number


def sentences() -> list[dict[str, str]]:
    return json.loads((HERE / "sentences.json").read_text())


def teacher_frames(text: str) -> list[int]:
    """How many frames the teacher takes, speaker by speaker; made by training/embedded/durations.py."""
    return json.loads((HERE / "teacher_frames.json").read_text())[text]


def lines(each: int) -> list[Line]:
    """`each` sentences a speaker, spread evenly over the kinds; the same for all."""
    rows = sentences()
    count = min(each, len(rows))
    chosen = sorted({round(i * len(rows) / count) for i in range(count)})
    return [Line(i, rows[i]["kind"], rows[i]["text"], s) for s in SPEAKERS for i in chosen]


def texts(count: int) -> list[Case]:
    """`count` of tests/spoken's cases, every kind in turn: whole sentences, since a recogniser guesses at scraps."""
    kinds: dict[str, dict[str, Case]] = {}
    for case in read_cases():
        if len(case.spoken.split()) >= 5 and case.spoken.isascii() and case.spoken[-1] in ".?!":
            kinds.setdefault(case.kind, {}).setdefault(case.spoken, case)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*(kind.values() for kind in kinds.values())))
    return [case for case in turns if case is not None][:count]


def answers(count: int) -> list[str]:
    """`count` texts of one or two words, or of letters, spread evenly over the file: such as the recogniser hears when the
    teacher says them. (Of single letters it hears few.)"""
    return _some("answers.json", count)


def passages(count: int) -> list[str]:
    """`count` texts of 200 to 300 characters."""
    return _some("passages.json", count)


def _some(name: str, count: int) -> list[str]:
    rows: list[str] = json.loads((HERE / name).read_text())
    return rows[:: max(1, len(rows) // count)][:count]


def conversations(each: int) -> list[list[Line]]:
    """`each` conversations for each pair of speakers next to one another, who take turns."""
    rows = [(i, row) for i, row in enumerate(sentences()) if row["kind"] in ("ordinary", "question", "service", "name")]
    talks, at = [], 0
    for number in range(each):
        for speaker in SPEAKERS:
            pair = (speaker, (speaker + 1 + number % 3) % len(SPEAKERS))
            talk = []
            for turn in range(TURNS):
                i, row = rows[at % len(rows)]
                talk.append(Line(i, row["kind"], row["text"], pair[turn % 2]))
                at += 7  # coprime to the number of rows: neighbours in the file are of one kind
            talks.append(talk)
    return talks
