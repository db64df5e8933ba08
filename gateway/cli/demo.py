"""`csm demo`: the whole chain once, from nothing running to nothing running, in plain language."""

from __future__ import annotations

from pathlib import Path

from csm_client import SpeechClient
from rich.console import Console

from gateway.cli.commands.voices import NOISE
from gateway.cli.ports import free_ports
from gateway.cli.say import FileSink, listen, new_trace, replacing, save_last_request, show_waterfall
from gateway.cli.up import Plan, deployment, introduction, load
from gateway.cli.verdict import verdict

TEXT = "Hello there. These words went through five small services on their way to you."
_NOISE_S = 4.0  # random weights never stop by themselves
_SEED = 6  # of the first sixteen, a recogniser reads thirteen word for word, and three but for one word


async def demo(model: str, out: Path, console: Console, progress: Console) -> int:
    """Start, speak, verify, show, stop. Logs and traces stay in a folder next to `out`.

    Raises: SpeechError, ChildDied, StartError, ModelError; everything is stopped then too.
    """
    bundle = load(model)
    out.parent.mkdir(parents=True, exist_ok=True)
    plan = Plan(model, free_ports(), out.with_suffix(""))
    console.print(f"Starting five services, a process each. {introduction(bundle)}")
    async with deployment(plan, console) as running, SpeechClient(running.address) as client:
        voices = await client.voices()
        limit_ms = None if voices.trained else round(1000 * _NOISE_S)
        with replacing(out) as file, new_trace() as trace_id:
            stream = client.stream(TEXT, seed=_SEED, max_audio_ms=limit_ms, encoding="pcm_s16le")
            spoken = await listen(stream, progress, FileSink(file))
            trace_id = save_last_request(stream, trace_id, running.traces)
        console.print(f'\n"{TEXT}"\n{out}: {spoken.describe()}')
        if not voices.trained:
            console.print(NOISE)
        with progress.status("looking for the watermark"):
            answer = await client.verify(out)
        console.print(verdict(answer))
        await show_waterfall(console, trace_id, stream.summary, running.traces)
    console.print(f"\nAll five have stopped. Their logs are in {plan.folder / 'logs'}.")
    console.print("`csm up` runs them with a page in the browser and OpenAI's speech API.")
    return 0
