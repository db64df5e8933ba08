"""Write how long the teacher takes for each acceptance sentence, in frames of 80 ms, speaker by speaker.

    python durations.py --scratch FOLDER --out ../../../tests/voice/teacher_frames.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from text import ACCEPTANCE
from voices import FRAME_SAMPLES, VOICES, Teacher


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.scratch.mkdir(parents=True, exist_ok=True)
    teacher = Teacher(args.scratch)
    lines = []
    for text in ACCEPTANCE:
        said = [teacher.say(text, speaker, 0) for speaker in range(len(VOICES))]
        lines.append(f"{json.dumps(text)}: {[len(one.audio) // FRAME_SAMPLES for one in said]}")
    args.out.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
