"""What a run of bench_chain.py starts from: its settings, those of the services, a bundle, ports."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import sys
from pathlib import Path

from services.runtime.settings import StartError

DEFAULT_POINTS = "1:8 16:5 64:5 256:6 512:6 1000:8"
_BLOCKS_A_SLOT = 24  # of 16 rows: a prompt of 130 and 20 s of speech
_HERE = Path(__file__).parent


def setting(name: str, default: str) -> str:
    return os.environ.get(name) or default


async def make_bundle(folder: Path, device: str) -> str:
    """CSM-1B's shapes with random weights; the generator on the device while the CPU makes the rest."""
    folder = Path(setting("SHAPES_FOLDER", str(folder)))
    if not (folder / "generator/model.safetensors").is_file():
        parts = (["tokenizer", "watermark", "mimi"], ["generator", "--device", device])
        makers = [
            await asyncio.create_subprocess_exec(sys.executable, _HERE / "bundle_csm_1b.py", folder, *part) for part in parts
        ]
        if any([await maker.wait() for maker in makers]):
            raise StartError("the bundle could not be made")
    return str(folder)


def configure(model: str, metrics: int) -> None:
    """Settings of the services, in our own environment, which theirs begins with."""
    device, slots = setting("DEVICE", "cuda"), int(setting("SLOTS", "1024"))
    on_gpu = device.startswith("cuda")
    wanted = {
        "CSM_BACKBONE_DEVICE": device, "CSM_CODEC_DEVICE": device,
        "CSM_WATERMARK_DEVICE": setting("WATERMARK_DEVICE", device),
        "CSM_BACKBONE_RUNNER": "graph" if on_gpu else "eager",
        "CSM_BACKBONE_DTYPE": "bfloat16" if on_gpu else "auto",
        "CSM_BACKBONE_SLOTS": slots, "CSM_CODEC_SLOTS": slots, "CSM_WATERMARK_STREAMS": slots,
        "CSM_BACKBONE_QUEUE": slots, "CSM_GATEWAY_MAX_STREAMS": 2 * slots,
        # As many as are needed, not all that fits: codec and watermark live on the same device.
        "CSM_BACKBONE_BLOCKS": max(128, _BLOCKS_A_SLOT * slots),
        "CSM_BACKBONE_PREFILL_ROWS": 512 if on_gpu else 64,
        "CSM_WATERMARK_KEY": secrets.token_hex(5),
        "CSM_SHARE_PORT": "true", "CSM_METRICS_LISTEN": f"127.0.0.1:{metrics}",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": setting("TRACED", "0.2"),
    }  # fmt: skip
    if model == "embedded":
        del wanted["CSM_WATERMARK_KEY"]
    for name, value in wanted.items():
        os.environ.setdefault(name, str(value))


@contextlib.asynccontextmanager
async def mps(folder: Path):
    """NVIDIA's daemon that lets kernels of several processes run side by side; for our processes alone."""
    if setting("MPS", "0") != "1":
        yield False
        return
    os.environ |= {"CUDA_MPS_PIPE_DIRECTORY": str(folder / "mps"), "CUDA_MPS_LOG_DIRECTORY": str(folder / "mps-log")}
    for name in ("mps", "mps-log"):
        (folder / name).mkdir()
    daemon = await asyncio.create_subprocess_exec("nvidia-cuda-mps-control", "-f", stdin=asyncio.subprocess.DEVNULL)
    try:
        yield True
    finally:
        quitting = await asyncio.create_subprocess_exec("nvidia-cuda-mps-control", stdin=asyncio.subprocess.PIPE)
        await quitting.communicate(b"quit\n")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(daemon.wait(), 5)
        with contextlib.suppress(ProcessLookupError):
            daemon.kill()


def facts(model: str, shared: bool) -> dict[str, str]:
    """What a reader of the table must know."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    names = ("CSM_BACKBONE_RUNNER", "CSM_BACKBONE_SLOTS", "CSM_CODEC_DEVICE", "CSM_CODEC_PRECISION", "CSM_WATERMARK_DEVICE")
    return {
        "address": "the whole chain, by its gateway on loopback",
        "machine": f"{gpu}, {os.cpu_count()} processors, torch {torch.__version__}, Python {sys.version.split()[0]}",
        "bundle": Path(model).name if "/" not in model else "CSM-1B's shapes, random weights",
        "services": ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
        + f", {setting('GATEWAYS', '2')} gateways, " + ("MPS" if shared else "no MPS"),
        "points": setting("POINTS", DEFAULT_POINTS) + " (streams:seconds)",
    }


def free_row(count: int) -> int:
    """The first of `count` free ports in a row."""
    for first in range(19464, 29464, count):
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            for port in range(first, first + count):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise StartError("no free ports")
