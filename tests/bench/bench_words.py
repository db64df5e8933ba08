"""Text that comes word by word: first audio after the first unit's last word, and whether the same words are heard.

    python tests/bench/bench_words.py --ways trailing leading whole --judges .venv/voice

Starts the chain with the bundled model on this machine's CPUs and has conversations of one turn, one after the other:
texts of three sentences (words.json). `trailing` sends "word ", `leading` sends " word" as most language models do,
both at --rate; `whole` sends the text at once. The clock runs from the moment at which the word was due that completes
the first unit, to the first audio at the client. With --judges a recogniser counts word errors; without, the WAVs in
--out are left to be judged with --judge-only.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests/voice"), str(ROOT / "tests")]
RATE_HZ = 24_000
WAYS = ("trailing", "leading", "whole")


@dataclass
class Said:
    """One turn. first_ms: first audio after the word that completed the first unit was due; start_ms: after the first.

    gap_ms: the longest buffer underrun of a listener who buffers nothing; 200: who buffers 200 ms.
    """

    way: str
    text: str
    wav: str
    units: list[str]
    first_ms: float
    start_ms: float
    gap_ms: float
    gap_200_ms: float
    warnings: int
    reason: int
    want: str = ""
    got: str = ""


def pieces(text: str, way: str) -> list[str]:
    words = text.split(" ")
    match way:
        case "trailing":
            return [*(word + " " for word in words[:-1]), words[-1]]
        case "leading":
            return [words[0], *(" " + word for word in words[1:])]
        case _:
            return [text]


async def say(client, text: str, way: str, rate: float, seed: int, path: Path) -> Said:
    from csm.speech.v1 import speech_pb2

    sent, units, arrived, pcm, warnings, reason = [], [], [], b"", 0, 0
    async with client.converse(speaker=seed % 2, seed=seed) as talk:
        while talk.started is None:  # the call is open before the clock runs
            await asyncio.wait_for(_first_message(talk), 10)

        async def write() -> None:
            begin_s = time.perf_counter()
            for number, piece in enumerate(pieces(text, way)):
                due_s = begin_s + number / rate
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                sent.append((due_s, len(piece)))
                await talk.append(piece)
            await talk.flush()

        writing = asyncio.create_task(write())
        async for event in talk:
            match event:
                case speech_pb2.TurnAudio():
                    pcm += event.data
                    arrived.append((time.perf_counter(), len(event.data) // 2))
                case speech_pb2.SpokenUnit():
                    units.append(event.text)
                case speech_pb2.ConverseWarning():
                    warnings += 1
                case speech_pb2.TurnFinished():
                    reason = event.finish_reason
                    break
        await writing
    save(path, pcm)
    ends, complete_s = len(units[0].rstrip()), 0.0
    for due_s, length in sent:
        complete_s, ends = due_s, ends - length
        if ends <= 0:
            break
    first_s = arrived[0][0]
    return Said(
        way,
        text,
        path.name,
        units,
        1e3 * (first_s - complete_s),
        1e3 * (first_s - sent[0][0]),
        1e3 * longest_gap(arrived, 0.0),
        1e3 * longest_gap(arrived, 0.2),
        warnings,
        reason,
    )


def save(path: Path, pcm: bytes) -> None:
    from chain import to_wav

    path.write_bytes(to_wav(np.frombuffer(pcm, "<i2").astype(np.float32) / 32768))


async def _first_message(talk) -> None:
    response = await talk._call.read()
    talk.started = response.started


def longest_gap(arrived: list[tuple[float, int]], buffer_s: float) -> float:
    """Seconds; playback begins `buffer_s` after the first audio and moves on by each gap."""
    until_s, longest = arrived[0][0] + buffer_s, 0.0
    for at_s, samples in arrived:
        longest, until_s = max(longest, at_s - until_s), max(until_s, at_s) + samples / RATE_HZ
    return longest


async def speak(args: argparse.Namespace) -> list[Said]:
    from chain import Chain
    from rich.console import Console

    texts = json.loads((ROOT / "tests/bench/words.json").read_text())[: args.texts]
    found = []
    async with Chain.start("embedded", args.out / "chain", Console()) as chain:
        for number in range(args.warm):  # pools, caches and connections as in a server that runs
            await say(chain.client, texts[number], "trailing", args.rate, 99, args.out / "warm.wav")
        for seed in args.seeds:
            for number, text in enumerate(texts):
                for way in args.ways:
                    path = args.out / f"{way}_{number:02}_{seed}.wav"
                    found.append(await say(chain.client, text, way, args.rate, seed, path))
    return found


def judge(found: list[Said], out: Path, folder: Path) -> None:
    import judges

    judges.use(folder)
    from speaking import read
    from wording import plain

    recogniser, silence = judges.Recogniser(out / "scratch"), np.zeros(RATE_HZ // 2, np.float32)
    for said in found:
        heard = recogniser.hear(np.concatenate([silence, read(out / said.wav), silence]))
        said.want, said.got = plain(said.text), plain(heard)


def report(found: list[Said], rate: float) -> None:
    for way in dict.fromkeys(said.way for said in found):
        some = [said for said in found if said.way == way]
        first = sorted(said.first_ms for said in some)
        print(
            f"{way}, {rate:g} words/s, {len(some)} turns: first audio after the first unit's last word median "
            f"{statistics.median(first):.0f}, p90 {np.quantile(first, 0.9):.0f}, most {first[-1]:.0f} ms, over 150: "
            f"{sum(ms > 150 for ms in first)}; after the first word median "
            f"{statistics.median(said.start_ms for said in some):.0f} ms; first unit median "
            f"{statistics.median(len(said.units[0]) for said in some):.0f} characters; units "
            f"{np.mean([len(said.units) for said in some]):.1f}; longest underrun {max(s.gap_ms for s in some):.0f} ms, "
            f"with 200 ms of buffer {max(s.gap_200_ms for s in some):.0f}; warnings {sum(s.warnings for s in some)}; "
            f"not ended by themselves {sum(s.reason != 1 for s in some)}"
        )
        if some[0].want:
            from tally import Tally

            tally = Tally()
            for said in some:
                tally.add(said.want, said.got)
            print(f"  WER {tally.wer:.1f} % of {tally.words} words, CER {tally.cer:.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rate", type=float, default=15.0, help="words a second")
    parser.add_argument("--texts", type=int, default=24, help="of words.json, at most")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="a turn of each text; odd ones by the other voice"
    )
    parser.add_argument("--warm", type=int, default=2, help="turns that are not counted")
    parser.add_argument("--judges", type=Path, help="the folder that `make voice-test` installs the judges into")
    parser.add_argument("--judge-only", action="store_true", help="judge what lies in --out")
    parser.add_argument("--out", type=Path, default=ROOT / "out/words")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    notes = args.out / "notes.json"
    if args.judge_only:
        found = [Said(**note) for note in json.loads(notes.read_text())]
    else:
        found = asyncio.run(speak(args))
    if args.judges:
        judge(found, args.out, args.judges)
    notes.write_text(json.dumps([dataclasses.asdict(said) for said in found], indent=1))
    report(found, args.rate)
    if args.judges:
        for said in found:
            if said.want != said.got:
                print(f"    {said.way} {said.wav}: {said.want!r} heard as {said.got!r}; units {said.units}")
    print(f"{os.cpu_count()} cores, {os.getloadavg()[0]:.1f} of load")


if __name__ == "__main__":
    main()
