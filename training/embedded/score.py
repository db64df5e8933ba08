"""Score WAVs named {speaker}_{sentence}.wav against the held-out sentences with Whisper base.

Both sides pass Whisper's English normaliser, so that "twenty" and "20" are one word.

    python score.py --whisper MODEL_FOLDER WAV_FOLDER [WAV_FOLDER …]
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

from faster_whisper import WhisperModel
from text import HELD_OUT
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer


def distance(a: list | str, b: list | str) -> int:
    """Edits that turn a into b (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whisper", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("folders", type=Path, nargs="+")
    args = parser.parse_args()
    model = WhisperModel(args.whisper, device="cpu", compute_type="int8", cpu_threads=args.threads)
    normalise = EnglishTextNormalizer({})
    for folder in args.folders:
        totals, heard = defaultdict(lambda: [0, 0, 0, 0]), []
        for path in sorted(folder.glob("*_*.wav")):
            speaker, sentence = (int(part) for part in path.stem.split("_"))
            segments, _ = model.transcribe(str(path), language="en", beam_size=5, condition_on_previous_text=False)
            text = " ".join(segment.text.strip() for segment in segments)
            want, got = normalise(HELD_OUT[sentence]), normalise(text)
            total = totals[speaker]
            total[0] += distance(want.split(), got.split())
            total[1] += len(want.split())
            total[2] += distance(want, got)
            total[3] += len(want)
            heard.append({"speaker": speaker, "sentence": sentence, "want": want, "got": got})
        (folder / "heard.json").write_text(json.dumps(heard, indent=0))
        print(folder.name, *(
            f"| {s}: WER {100 * t[0] / t[1]:.1f} CER {100 * t[2] / t[3]:.1f} ({t[1]} words)" for s, t in sorted(totals.items())
        ), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
