"""What a run of bench_chain.py starts from: its settings, those of the services, a bundle, ports."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import secrets
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from services.runtime.settings import StartError

if TYPE_CHECKING:
    from chain_layout import Counts, Layout

DEFAULT_POINTS = "1:6 16:5 64:5 256:6:4 512:8:6 1000:12:10"
_PROMPT_ROWS = 134  # of the longest sentence
_FRAME_RATE_HZ = 12.5
_HERE = Path(__file__).parent


def setting(name: str, default: str) -> str:
    return os.environ.get(name) or default


async def make_bundle(folder: Path, device: str) -> tuple[str, asyncio.Task[None]]:
    """CSM-1B's shapes with random weights: where they are, and what ends when the generator is there too.

    The generator takes longest, on the device: everything but the backbones can start meanwhile.
    """
    folder = Path(setting("SHAPES_FOLDER", str(folder)))

    async def make(*part: str) -> None:
        maker = await asyncio.create_subprocess_exec(sys.executable, _HERE / "bundle_csm_1b.py", folder, *part)
        try:
            if await maker.wait():
                raise StartError(f"the bundle's {part[0]} could not be made")
        finally:
            with contextlib.suppress(ProcessLookupError):  # it has ended, unless we are to
                maker.kill()

    if (folder / "generator/model.safetensors").is_file():
        return str(folder), asyncio.create_task(asyncio.sleep(0))
    generator = asyncio.create_task(make("generator", "--device", device))
    await asyncio.gather(*(make(part) for part in ("tokenizer", "watermark", "mimi")))
    return str(folder), generator


def configure(model: str, counts: Counts) -> None:
    """Settings of the services, in our own environment, which theirs begins with."""
    device, slots = setting("DEVICE", "cuda"), int(setting("SLOTS", "1024"))
    on_gpu = device.startswith("cuda")
    rows = _PROMPT_ROWS + math.ceil(float(setting("AUDIO_S", "20")) * _FRAME_RATE_HZ)
    wanted = {
        "CSM_BACKBONE_DEVICE": device, "CSM_CODEC_DEVICE": device,
        "CSM_WATERMARK_DEVICE": setting("WATERMARK_DEVICE", device),
        "CSM_BACKBONE_RUNNER": "graph" if on_gpu else "eager",
        "CSM_BACKBONE_DTYPE": "bfloat16" if on_gpu else "auto",
        "CSM_BACKBONE_SLOTS": slots, "CSM_BACKBONE_QUEUE": slots,
        # All that the backbones make at once has a place in what comes after them, whichever way it is spread.
        "CSM_CODEC_SLOTS": counts.slots("codec", slots), "CSM_WATERMARK_STREAMS": counts.slots("watermark", slots),
        "CSM_GATEWAY_MAX_STREAMS": 2 * slots * counts.of["backbone"],
        # As many as are needed, not all that fits: codec and watermark live on the same device.
        "CSM_BACKBONE_BLOCKS": max(128, math.ceil(rows / 16) * slots),
        "CSM_BACKBONE_PREFILL_ROWS": 512 if on_gpu else 64,
        "CSM_WATERMARK_KEY": secrets.token_hex(5),
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": setting("TRACED", "0.2"),
    }  # fmt: skip
    if model == "embedded":
        del wanted["CSM_WATERMARK_KEY"]
    for name, value in wanted.items():
        os.environ.setdefault(name, str(value))


@contextlib.asynccontextmanager
async def mps(folder: Path):
    """MPS=1: NVIDIA's daemon that lets kernels of several processes run side by side; for our processes alone.

    Where it cannot be had, MPS becomes 0.
    """
    if setting("MPS", "0") != "1":
        yield
        return
    places = {"CUDA_MPS_PIPE_DIRECTORY": str(folder / "mps"), "CUDA_MPS_LOG_DIRECTORY": str(folder / "mps-log")}
    for name in ("mps", "mps-log"):
        (folder / name).mkdir()
    daemon = None
    with contextlib.suppress(OSError):
        command = ("nvidia-cuda-mps-control", "-f")
        daemon = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL, env=os.environ | places)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(daemon.wait(), 1)  # one that cannot work leaves at once
    if daemon is None or daemon.returncode is not None:
        print("no MPS here: nvidia-cuda-mps-control is missing or has ended; the processes take turns", flush=True)
        os.environ["MPS"] = "0"
        yield
        return
    os.environ |= places
    try:
        yield
    finally:
        quitting = await asyncio.create_subprocess_exec("nvidia-cuda-mps-control", stdin=asyncio.subprocess.PIPE)
        await quitting.communicate(b"quit\n")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(daemon.wait(), 5)
        with contextlib.suppress(ProcessLookupError):
            daemon.kill()


def facts(layout: Layout) -> dict[str, str]:
    """What a reader of the table must know."""
    names = ("CSM_BACKBONE_RUNNER", "CSM_BACKBONE_SLOTS", "CSM_CODEC_SLOTS", "CSM_CODEC_PRECISION", "CSM_WATERMARK_STREAMS")
    bundle = setting("BUNDLE", "CSM-1B's shapes, random weights")
    return {
        "address": "the whole chain, by its gateways on loopback",
        "machine": f"{', '.join(_gpu_names()) or 'no GPU'}, {os.cpu_count()} processors, torch {version('torch')}, "
        f"Python {sys.version.split()[0]}",
        "bundle": bundle if "/" not in bundle else Path(bundle).name,
        "processes": ", ".join(p.name + (f" (GPU {p.gpu})" if p.gpu else "") for p in layout.processes),
        "services": ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
        + (", MPS" if setting("MPS", "0") == "1" else ", no MPS"),
        "points": f"{setting('POINTS', DEFAULT_POINTS)} (streams:seconds:ramp)",
    }


@cache
def _gpu_names() -> list[str]:
    try:
        told = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
    except OSError:
        return []
    return told.stdout.split("\n")[:-1] if told.returncode == 0 else []
