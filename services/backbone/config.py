"""Settings of the backbone service."""

from __future__ import annotations

from dataclasses import dataclass

from services.runtime.settings import ServerSettings, setting


@dataclass(frozen=True)
class BackboneSettings(ServerSettings):
    """Read from the environment at start."""

    listen: str = setting("CSM_LISTEN", "127.0.0.1:50052", "address and port to listen on")
    device: str = setting("CSM_BACKBONE_DEVICE", "cpu", "where the model runs: cpu, cuda or cuda:N")
    dtype: str = setting(
        "CSM_BACKBONE_DTYPE",
        "auto",
        "weights' number format; auto is float32 on cpu, else bfloat16",
        choices=("auto", "float32", "bfloat16"),
    )
    runner: str = setting(
        "CSM_BACKBONE_RUNNER",
        "auto",
        "how frames are run: eager, or graph, captured CUDA graphs; auto is graph on a GPU",
        choices=("auto", "eager", "graph"),
    )
    threads: int = setting("CSM_BACKBONE_THREADS", 1, "CPU threads of one step", min=1, max=256)
    slots: int = setting("CSM_BACKBONE_SLOTS", 4, "requests generated at once", min=1, max=4096)
    queue: int = setting("CSM_BACKBONE_QUEUE", 8, "requests that may wait for a slot", min=0, max=4096)
    block_rows: int = setting(
        "CSM_BACKBONE_BLOCK_ROWS",
        4,
        "rows computed in one pass, idle ones included; more slots take more passes",
        min=1,
        max=4096,
    )
    prefill_rows: int = setting(
        "CSM_BACKBONE_PREFILL_ROWS",
        0,
        "prompt rows read between two frames of the others, a multiple of 16; 0 is 64 when eager, 512 with graphs",
        min=0,
        max=4096,
    )
    blocks: int = setting(
        "CSM_BACKBONE_BLOCKS",
        0,
        "blocks of 16 rows in the key-value cache; 0 is as many as all slots can fill",
        min=0,
        max=4_194_304,
    )
    share_prefixes: bool = setting(
        "CSM_BACKBONE_SHARE_PREFIXES", True, "requests whose prompts begin alike share what was read of them"
    )
    max_frames: int = setting("CSM_BACKBONE_MAX_FRAMES", 1125, "longest utterance, frames", min=1, max=100_000)
    buffer_frames: int = setting(
        "CSM_BACKBONE_BUFFER_FRAMES",
        128,
        "frames a reader may leave unread before its slot pauses",
        min=64,
        max=4096,
    )
    reader_stall_s: float = setting(
        "CSM_BACKBONE_READER_STALL_S", 30.0, "a slot paused for longer is taken from its reader", min=0.1
    )
    trace_steps: int = setting(
        "CSM_BACKBONE_TRACE_STEPS", 0, "one step in so many is a span, linked to its requests; 0 is none", min=0
    )
    stall_s: float = setting("CSM_BACKBONE_STALL_S", 30.0, "a step longer than this means a stuck device", min=1)
