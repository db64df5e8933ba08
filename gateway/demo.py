"""`csm demo`: the whole chain once, from nothing running to nothing running, in plain language."""

from __future__ import annotations

from pathlib import Path

from csm.speech.v1 import speech_pb2
from rich.console import Console

from gateway.client import SpeechClient
from gateway.say import listen, replacing, show_waterfall
from gateway.up import NOISE, Plan, deployment, free_ports
from models.bundle import load_bundle

TEXT = "Hello there. These words went through five small services on their way to you."
_NOISE_S = 4.0  # random weights never stop by themselves
_SEED = 20


async def demo(model: str, out: Path, console: Console, progress: Console) -> int:
    """Start, speak, verify, show, stop. Logs and traces stay in a folder beside `out`.

    Raises: SpeechError, ChildDied, StartError; everything is stopped then too.
    """
    bundle = load_bundle(model)
    out.parent.mkdir(parents=True, exist_ok=True)
    plan = Plan(model, free_ports(), out.with_suffix(""))
    console.print(f"Five services start, a process each, with the bundle `{bundle.id}`: {bundle.description}.")
    async with deployment(plan, console) as running, SpeechClient(running.address) as client:
        voices = await client.voices()
        limit_ms = None if voices.trained else round(1000 * _NOISE_S)
        with replacing(out) as file:
            stream = client.stream(TEXT, seed=_SEED, max_audio_ms=limit_ms, encoding="pcm_s16le")
            spoken = await listen(stream, progress)
            file.write(spoken.wav())
        console.print(f'\n"{TEXT}"\n{out}: {spoken.describe()}')
        console.print(verdict(await client.verify(out)))
        if not voices.trained:
            console.print(NOISE)
        console.print()
        await show_waterfall(console, spoken, running.traces)
    console.print(f"\nAll five have stopped. Their logs are in {plan.folder / 'logs'}.")
    return 0


def verdict(answer: speech_pb2.VerifyWatermarkResponse) -> str:
    """One line: whether the mark is there, and how sure that is."""
    numbers = f"confidence {answer.confidence:.2f}, found from {answer.threshold:.2f} on"
    if answer.found:
        return f"Watermark found at {answer.position.ToNanoseconds() / 1e9:.2f} s ({numbers})."
    if not answer.detectable:
        return f"Watermark not found ({numbers}): the nets of this bundle are untrained, no mark can be found with it."
    return f"Watermark not found ({numbers})."
