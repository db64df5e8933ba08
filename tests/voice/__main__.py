"""Acceptance of the embedded voice: `make voice-test`, `make voice-test QUICK=1`.

Says unseen sentences through the real gateway, has them judged, and prints one table. Exit code 0 says that every
figure is within its limit. What was said lies in out/voice-test, with what was heard in it (notes.json).

On two free cores the full size should take about 20 minutes to say, 30 to judge, ten to look for marks in, and an hour
or two for the stock decoder, which a GPU does in minutes. Parts can be run one by one: `--parts speech`, `--parts spoken`,
`--parts marks`, `--parts stock`.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Size:
    """How much is said and looked at.

    each: sentences a speaker. talks: conversations begun by each speaker. clips: in which the mark is looked for.
    crops: of 2 s that the stock decoder reads. windows: unmarked ones. timed: utterances timed on one core.
    texts: with numbers, signs and markup in them. answers: of one or two words. passages: of 200 to 300 characters.
    """

    each: int
    talks: int
    clips: int
    crops: int
    windows: int
    timed: int
    texts: int
    answers: int
    passages: int


FULL = Size(each=100, talks=8, clips=300, crops=300, windows=2000, timed=20, texts=120, answers=60, passages=20)
QUICK = Size(each=12, talks=2, clips=10, crops=6, windows=40, timed=8, texts=24, answers=20, passages=4)
PARTS = ("speech", "lengths", "spoken", "marks", "stock", "pace")


async def speak(args: argparse.Namespace, size: Size, notes: dict) -> None:
    """Everything that needs the chain; fills the notes."""
    import judging
    import speaking
    import stock_decoder
    import work
    from chain import Chain
    from rich.console import Console

    from models.bundle import load_bundle

    console, lines = Console(), work.lines(size.each)
    teacher = speaking.teacher_of(args.out / "scratch", args.kokoro) if "speech" in args.parts else None
    if set(args.parts) - {"stock", "pace"}:
        async with Chain.start(args.model, args.out / "chain", console) as chain:
            if "speech" in args.parts:
                speaking.clear(args.out)
                notes["voices"] = {str(v.speaker): v.name for v in (await chain.client.voices()).voices}
                notes["said"] = await speaking.utterances(chain, lines, args.out)
                notes["talks"] = await speaking.talks(chain, work.conversations(size.talks), args.out)
                some = work.lines(max(2, size.each // 4))
                notes["codec"] = await speaking.codec_alone(chain, some, args.out, teacher)
            if "lengths" in args.parts:
                notes["answers"] = await speaking.lengths(chain, work.answers(size.answers), args.out / "answers")
                notes["passages"] = await speaking.lengths(chain, work.passages(size.passages), args.out / "passages")
            if "spoken" in args.parts:
                judge = judging.WordJudge(args.out / "scratch")
                notes["texts"] = await speaking.texts(chain, work.texts(size.texts), args.out, judge)
            if "marks" in args.parts:
                notes["marks"] = await speaking.marks(chain, args.out, size.clips)
                notes["alarms"] = await speaking.alarms(chain, args.out, size.windows)
    if "stock" in args.parts:
        part = load_bundle(args.model).watermark
        notes["stock"] = stock_decoder.readings(args.out, part.resolve(), tuple(part.options["public_key"]), size.crops)
    if "pace" in args.parts:
        async with Chain.start(args.model, args.out / "one_core", console, core=speaking.last_core()) as chain:
            timed = [line for line in lines if line.kind != "short"]
            timed = timed[:: max(1, len(timed) // size.timed)][: size.timed]
            notes["one_core"] = await speaking.on_one_core(chain, timed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="an eighth of the speech, fewer marks")
    for field in dataclasses.fields(Size):
        parser.add_argument(f"--{field.name}", type=int, help="instead of the size's own number")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="the others' notes are kept from before"
    )
    parser.add_argument("--model", default="embedded", help="bundle: a name or a folder")
    parser.add_argument("--out", type=Path, default=ROOT / "out/voice-test")
    parser.add_argument(
        "--kokoro",
        type=Path,
        default=ROOT / ".venv/voice/kokoro.safetensors",
        help="its weights, where it is the teacher",
    )
    parser.add_argument("--judges", type=Path, default=ROOT / ".venv/voice", help="folder of their packages")
    args = parser.parse_args()
    size = QUICK if args.quick else FULL
    given = {name: value for name in vars(size) if (value := getattr(args, name)) is not None}
    size = dataclasses.replace(size, **given)

    import judges

    judges.use(args.judges)
    sys.path.append(str(ROOT / "tests"))  # `support`
    sys.path.append(str(ROOT / "training/embedded"))  # the teacher's voices
    import judging

    (args.out / "scratch").mkdir(parents=True, exist_ok=True)
    kept, began = args.out / "notes.json", time.monotonic()
    notes = json.loads(kept.read_text()) if kept.exists() and set(args.parts) != set(PARTS) else {}
    asyncio.run(speak(args, size, notes))
    if "speech" in args.parts:
        judging.judge(notes, args.out)
    if "lengths" in args.parts:
        judging.judge_lengths(notes, args.out)
    kept.write_text(json.dumps(notes, indent=0))
    table = judging.table(notes)
    text = table.markdown()
    (args.out / "table.md").write_text(text + "\n")
    print(f"\n{text}\n\n{table.failed} of {sum(r.passed is not None for r in table.rows)} limits are not met; "
          f"{(time.monotonic() - began) / 60:.0f} minutes")  # fmt: skip
    return 1 if table.failed else 0


if __name__ == "__main__":
    sys.exit(main())
