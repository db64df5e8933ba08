"""What the spoken form costs until the first audio: with the front end against without, in pairs.

    PYTHONPATH=.:protos:gateway/client:tests python tests/bench/bench_front_end.py --seconds 180

Starts the chain with the bundled model, all five services on the last CPU core, the caller on the others. Of a pair one
call gives a text as it is written; the other gives its spoken form and switches the normalization off. Both thus have the
same tokens, seed and audio, of two frames alone: the difference is the front end. Which is first alternates. Half of the
texts are their own spoken form. Beside them the first text is paired with itself, which tells the noise.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from csm_client import SpeechClient
from rich.console import Console

from gateway.cli.ports import free_ports
from gateway.cli.up import Plan, deployment
from support.spoken_cases import read_cases

PLAIN = (
    "Good morning. The letters are on the table.",
    "I thought that the meeting was tomorrow, was it not?",
    "Please close the window before you leave.",
    "That sounds lovely, thank you very much.",
)
KINDS = ("dates", "markdown", "money", "numbers", "percent", "phones", "times", "units")
_MAX_AUDIO_MS = 160
_PAUSE_S = 0.01  # so that no request meets the end of the one before
_WARM_UP = 1  # pairs that are not counted
_RESAMPLES = 4000


async def first_audio(client: SpeechClient, text: str, normalize: bool) -> tuple[float, bytes]:
    """Milliseconds to the first audio as the caller sees them, and all of it."""
    began_s, first_s, audio = time.perf_counter(), 0.0, b""
    async for piece in client.stream(text, speaker=0, seed=6, text_normalization=normalize, max_audio_ms=_MAX_AUDIO_MS):
        first_s = first_s or time.perf_counter() - began_s
        audio += piece
    return 1000 * first_s, audio


async def pair(client: SpeechClient, number: int, calls: list[tuple[str, bool]]) -> np.ndarray:
    """Milliseconds of each of the two [2]."""
    took, audio = [0.0, 0.0], [b"", b""]
    for which in (0, 1) if number % 2 else (1, 0):
        took[which], audio[which] = await first_audio(client, *calls[which])
        await asyncio.sleep(_PAUSE_S)
    if audio[0] != audio[1]:
        raise RuntimeError(f"{calls} gave different audio: they are no pair")
    return np.array(took)


def row(name: str, rows: list[np.ndarray]) -> str:
    """A line of the table, with a bootstrapped interval of the median difference."""
    took = np.stack(rows)
    over = took[:, 0] - took[:, 1]
    draws = np.random.default_rng(0).integers(0, len(over), (_RESAMPLES, len(over)))
    low, high = np.percentile(np.median(over[draws], axis=1), (2.5, 97.5))
    p5, p95 = np.percentile(over, (5, 95))
    with_ms, without_ms = np.median(took, axis=0)
    return (
        f"| {name} | {len(over)} | {with_ms:.2f} | {without_ms:.2f} | {np.median(over):+.2f} ({low:+.2f} to {high:+.2f}) "
        f"| {p5:+.1f} / {p95:+.1f} |"
    )


async def measure(address: str, seconds: float) -> None:
    cases = [case for case in read_cases() if case.kind in KINDS and 20 < len(case.text) < 90]
    step = max(1, len(cases) // len(PLAIN))
    written = [(case.text, case.spoken) for case in cases[::step][: len(PLAIN)]]
    sets = {
        "written as spoken": [[(text, True), (text, False)] for text in PLAIN],
        "numbers, signs, markup": [[(text, True), (spoken, False)] for text, spoken in written],
        "the same call twice": [[(PLAIN[0], True), (PLAIN[0], True)]],
    }
    print("\n".join(f"{text!r} is {spoken!r}" for text, spoken in written))
    found: dict[str, list[np.ndarray]] = {name: [] for name in sets}
    async with SpeechClient(address) as client:
        end_s, number = time.monotonic() + seconds, 0
        while time.monotonic() < end_s:
            for name, calls in sets.items():
                took = await pair(client, number // len(calls) + number, calls[number % len(calls)])
                if number >= _WARM_UP:
                    found[name].append(took)
            number += 1
    print("\n| texts | pairs | with, ms | without, ms | median difference (95 % interval), ms | p5 / p95 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, rows in found.items():
        print(row(name, rows), flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180.0, help="of measuring")
    args = parser.parse_args()
    allowed = os.sched_getaffinity(0)
    core = max(allowed)
    with tempfile.TemporaryDirectory() as folder:
        os.sched_setaffinity(0, {core})  # the services inherit it
        running = deployment(Plan("embedded", free_ports(), Path(folder)), Console(stderr=True))
        deployed = await running.__aenter__()
        try:
            os.sched_setaffinity(0, allowed - {core} or allowed)
            await measure(deployed.address, args.seconds)
        finally:
            await running.__aexit__(*sys.exc_info())


if __name__ == "__main__":
    asyncio.run(main())
