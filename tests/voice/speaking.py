"""The first half of the test: everything that needs the chain running. What it hears is kept as WAVs and notes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import soundfile
import work
from attacks import ATTACKS
from chain import RATE_HZ, Chain, to_wav
from csm_client import ContextTurn
from work import Line

from support.spoken_cases import Case

CLIP_S = 2.0
TAKES = 3  # of a text with numbers and signs


def keep(path: Path, audio: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_wav(audio))


def read(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32")[0]


def clear(out: Path) -> None:
    """Remove what an earlier run said."""
    for folder in ("marked", "unmarked", "talks", "codec", "teacher"):
        for stale in (out / folder).glob("*.wav"):
            stale.unlink()


async def all_of(what: str, jobs: list[Awaitable[dict]]) -> list[dict]:
    """Run them, tell how it goes."""
    began, done, notes = time.monotonic(), 0, []
    for job in asyncio.as_completed(jobs):
        notes.append(await job)
        done += 1
        if done % max(1, len(jobs) // 4) == 0:
            print(f"  {what}: {done} of {len(jobs)} after {time.monotonic() - began:.0f} s", flush=True)
    return notes


async def utterances(chain: Chain, lines: list[Line], out: Path, **sampling: float) -> list[dict]:
    """Every line through the gateway, and unmarked from the stages. One note a line."""

    async def one(line: Line) -> dict:
        name = f"{line.speaker}_{line.number}.wav"
        spoken = await chain.say(line.text, line.speaker, line.seed, **sampling)
        keep(out / "marked" / name, spoken.audio)
        note = {
            "wav": f"marked/{name}",
            "speaker": line.speaker,
            "number": line.number,
            "kind": line.kind,
            "text": line.text,
            "ended": spoken.ended,
            "frames": spoken.frames,
            "teacher": work.teacher_frames(line.text)[line.speaker],
        }
        if not sampling:
            keep(out / "unmarked" / name, await chain.say_unmarked(line.text, line.speaker, line.seed))
        return note

    return await all_of("utterances", [one(line) for line in lines])


async def texts(
    chain: Chain, cases: list[Case], out: Path, hears: Callable[[np.ndarray, Case], tuple[str, bool]]
) -> list[dict]:
    """Texts as people write them, by the voices in turn. A text that was not heard as wanted is said again by the next
    voice, TAKES times at most: one word in 25 is misheard in plain sentences too. One note a text, of its last take.

    hears: (what was heard, whether it is what was wanted).
    """
    listening = asyncio.Lock()  # the recogniser hears one at a time

    async def one(number: int, case: Case) -> dict:
        note: dict = {"kind": case.kind, "text": case.text, "words": case.spoken, "takes": []}
        for take in range(TAKES):
            speaker = (number + take) % len(work.SPEAKERS)
            spoken = await chain.say(case.text, speaker, 100 + number)
            keep(out / "texts" / f"{number}_{take}.wav", spoken.audio)
            async with listening:
                heard, as_wanted = await asyncio.to_thread(hears, spoken.audio, case)
            note["spoken_text"] = spoken.words
            note["takes"].append({"speaker": speaker, "heard": heard, "as_wanted": as_wanted})
            if as_wanted:
                break
        return note

    return await all_of("texts", [one(i, case) for i, case in enumerate(cases)])


async def lengths(chain: Chain, texts: list[str], out: Path) -> list[dict]:
    """Very short and long texts, by the voices in turn. One note a text."""

    async def one(number: int, text: str) -> dict:
        speaker = number % len(work.SPEAKERS)
        spoken = await chain.say(text, speaker, 300 + number)
        keep(out / f"{number}.wav", spoken.audio)
        return {
            "wav": f"{out.name}/{number}.wav", "number": number, "speaker": speaker, "text": text, "ended": spoken.ended
        }  # fmt: skip

    return await all_of(out.name, [one(i, text) for i, text in enumerate(texts)])


async def talks(chain: Chain, conversations: list[list[Line]], out: Path) -> list[dict]:
    """Conversations, each turn with all before it as context: as the caller heard them, the mark included."""

    async def one(number: int, talk: list[Line]) -> dict:
        context: list[ContextTurn] = []
        turns = []
        for turn, line in enumerate(talk):
            spoken = await chain.say(line.text, line.speaker, line.seed + 7 * number, context)
            name = f"{number}_{turn}.wav"
            keep(out / "talks" / name, spoken.audio)
            turns.append({
                "wav": f"talks/{name}", "speaker": line.speaker, "turn": turn, "text": line.text,
                "ended": spoken.ended, "frames": spoken.frames, "teacher": work.teacher_frames(line.text)[line.speaker],
            })  # fmt: skip
            context.append(ContextTurn(line.speaker, line.text, to_wav(spoken.audio)))
        return {"turns": turns}

    notes = await all_of("conversations", [one(i, talk) for i, talk in enumerate(conversations)])
    return [turn for note in notes for turn in note["turns"]]


def teacher_of(scratch: Path, kokoro: Path):
    """Who the shipped speakers learnt from. kokoro: its weights, needed where it is the teacher."""
    import voices

    if voices.TEACHER == "hibari":
        return voices.Teacher(scratch)
    if not kokoro.exists():
        raise SystemExit(f"{kokoro} is missing: training/embedded/kokoro_pack.py says how it is made")
    import cast

    return cast.Teacher(kokoro)


async def codec_alone(chain: Chain, lines: list[Line], out: Path, teacher) -> list[dict]:
    """The teacher's own speech through encoder and decoder."""
    turn = asyncio.Lock()  # it speaks one utterance at a time

    async def one(line: Line) -> dict:
        async with turn:
            said = await asyncio.to_thread(teacher.say, line.text, line.speaker, 0)
        name = f"{line.speaker}_{line.number}.wav"
        keep(out / "teacher" / name, said.audio.astype(np.float32) / 32768)
        keep(out / "codec" / name, await chain.recode(said.audio.astype(np.float32) / 32768))
        return {
            "wav": f"codec/{name}", "speaker": line.speaker, "number": line.number, "text": line.text,
            "phones": said.phones.tolist(),
        }  # fmt: skip

    return await all_of("codec alone", [one(line) for line in lines])


async def marks(chain: Chain, out: Path, clips: int) -> list[dict]:
    """The mark looked for by the gateway in `clips` clips of 2 s and more, after each attack. One note a look."""
    paths = [p for p in sorted((out / "marked").glob("*.wav")) if soundfile.info(p).duration >= CLIP_S]
    paths = sorted(paths, key=lambda p: (int(p.stem.split("_")[1]), p.stem))[:clips]

    async def one(number: int, path: Path, name: str) -> dict:
        draw = np.random.default_rng([number, list(ATTACKS).index(name)])
        async with chain.preparing:
            audio = await asyncio.to_thread(ATTACKS[name], read(path), draw)
            return {"attack": name, "wav": path.name, "found": await chain.marked(audio)}

    return await all_of("marks", [one(i, p, name) for name in ATTACKS for i, p in enumerate(paths)])


async def alarms(chain: Chain, out: Path, windows: int) -> list[dict]:
    """The mark looked for in windows of 2 s of speech that was never marked: generated and the teacher's."""
    clips = [read(p) for folder in ("unmarked", "codec") for p in sorted((out / folder).glob("*.wav"))]
    length = int(CLIP_S * RATE_HZ)
    room = sum(max(0, len(clip) - length) for clip in clips)
    # Windows overlap: as many as asked for, spread evenly over all clips that are long enough.
    hop = max(1, room // windows)
    starts = [(i, at) for i, clip in enumerate(clips) for at in range(0, len(clip) - length + 1, hop)][:windows]

    async def one(clip: int, at: int) -> dict:
        return {"found": await chain.marked(clips[clip][at : at + length])}

    return await all_of("unmarked windows", [one(*start) for start in starts])


async def on_one_core(chain: Chain, lines: list[Line]) -> list[dict]:
    """One utterance after the other, on a chain that has one core."""
    await chain.say("This one is not counted.", 0, 1)
    notes = []
    for line in lines:
        spoken = await chain.say(line.text, line.speaker, line.seed)
        notes.append({"first_s": spoken.first_s, "real_time_factor": spoken.real_time_factor, "kind": line.kind})
    return notes


def last_core() -> int:
    return max(os.sched_getaffinity(0))
