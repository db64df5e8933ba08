"""Write how long the teacher takes for each acceptance sentence, in frames of 80 ms, speaker by speaker.

python durations.py --scratch FOLDER --out ../../tests/voice/teacher_frames.json
python durations.py --kokoro kokoro.safetensors --out FILE       # the speakers of cast.py; on a GPU if there is one
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from text import ACCEPTANCE
from voices import FRAME_SAMPLES, VOICES, Teacher, Utterance


def said_by_kokoro(weights: Path, device: str) -> list[list[Utterance]]:
    """[sentence][speaker], batched; raises SystemExit where the teacher cannot say a sentence."""
    import torch
    from cast import CAST, Reader, Stage
    from kokoro import Kokoro

    on_gpu = device.startswith("cuda")
    torch.manual_seed(0)
    stage = Stage(Kokoro(weights, device, torch.float16 if on_gpu else torch.float32), 9600 if on_gpu else 320)
    reader, found = Reader(), {}
    for text in ACCEPTANCE:
        ids = reader.ids(text)
        for one in stage.speak([(text, speaker, ids) for speaker in range(len(CAST))]):
            found[one.text, one.speaker] = one
    found |= {(one.text, one.speaker): one for one in stage.rest()}
    missing = {(text, s) for text in ACCEPTANCE for s in range(len(CAST))} - set(found)
    if missing:
        raise SystemExit(f"not said: {sorted(missing)}")
    return [[found[text, s] for s in range(len(CAST))] for text in ACCEPTANCE]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="for hibari's model with its durations exposed")
    parser.add_argument("--kokoro", type=Path)
    parser.add_argument("--device", default="")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.kokoro:
        import torch

        said = said_by_kokoro(args.kokoro, args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    else:
        args.scratch.mkdir(parents=True, exist_ok=True)
        teacher = Teacher(args.scratch)
        said = [[teacher.say(text, speaker, 0) for speaker in range(len(VOICES))] for text in ACCEPTANCE]
    lines = [
        f"{json.dumps(text)}: {[len(one.audio) // FRAME_SAMPLES for one in ones]}"
        for text, ones in zip(ACCEPTANCE, said, strict=True)
    ]
    args.out.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
