"""Settings of the codec service."""

from __future__ import annotations

from dataclasses import dataclass

from services.runtime.settings import ServerSettings, setting


@dataclass(frozen=True)
class CodecSettings(ServerSettings):
    """Read from the environment at start."""

    listen: str = setting("CSM_LISTEN", "127.0.0.1:50053", "address and port to listen on")
    device: str = setting("CSM_CODEC_DEVICE", "cpu", "where Mimi decodes: cpu, cuda or cuda:N")
    precision: str = setting(
        "CSM_CODEC_PRECISION",
        "fp32",
        "precision of products: fp32, or tf32 or fp16, which are faster on a GPU and change speech by -65 and -64 dB",
        choices=("fp32", "tf32", "fp16"),
    )
    threads: int = setting("CSM_CODEC_THREADS", 1, "CPU threads of one pass", min=1, max=256)
    slots: int = setting("CSM_CODEC_SLOTS", 8, "streams that can be open at once", min=1, max=4096)
    max_chunk_frames: int = setting("CSM_CODEC_MAX_CHUNK_FRAMES", 8, "frames of one stream in one pass", min=1, max=64)
    max_backlog_frames: int = setting(
        "CSM_CODEC_MAX_BACKLOG_FRAMES",
        128,
        "frames of one stream in the server: queued, decoded and not yet read",
        min=1,
        max=4096,
    )
    stall_s: float = setting("CSM_CODEC_STALL_S", 30.0, "a pass that takes longer counts as a stuck device", min=1)
