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
        "number format of the weights; auto is float32 on cpu, otherwise bfloat16",
        choices=("auto", "float32", "bfloat16"),
    )
    runner: str = setting(
        "CSM_BACKBONE_RUNNER",
        "auto",
        "eager, or graph for captured CUDA graphs; auto is graph on a GPU",
        choices=("auto", "eager", "graph"),
    )
    persistent_depth: str = setting(
        "CSM_BACKBONE_PERSISTENT_DEPTH",
        "auto",
        "batches of up to 16 run the depth decoder as one launch (Hopper, bfloat16): auto where no MPS daemon "
        "runs, on there too, which allows one backbone a GPU",
        choices=("auto", "on", "off"),
    )
    threads: int = setting("CSM_BACKBONE_THREADS", 1, "CPU threads of the model", min=1, max=256)
    slots: int = setting("CSM_BACKBONE_SLOTS", 4, "requests generated at once", min=1, max=4096)
    queue: int = setting("CSM_BACKBONE_QUEUE", 8, "requests that may wait for a slot", min=0, max=4096)
    eager_batch: int = setting(
        "CSM_BACKBONE_EAGER_BATCH",
        4,
        "batch size of the eager runner; fewer requests are padded to it, more take several passes",
        min=1,
        max=4096,
    )
    max_prefill_tokens: int = setting(
        "CSM_BACKBONE_MAX_PREFILL_TOKENS",
        0,
        "prompt tokens of one prefill pass; 0 is 64 for the eager runner, 512 for the graph runner",
        min=0,
        max=4096,
    )
    blocks: int = setting(
        "CSM_BACKBONE_BLOCKS",
        0,
        "blocks of 16 positions in the key-value cache; 0 is enough for all slots, as far as memory goes",
        min=0,
        max=4_194_304,
    )
    prefix_cache: bool = setting(
        "CSM_BACKBONE_PREFIX_CACHE", True, "prompts that begin alike share their key-value blocks"
    )
    max_frames: int = setting("CSM_BACKBONE_MAX_FRAMES", 1125, "longest utterance, frames", min=1, max=100_000)
    buffer_frames: int = setting(
        "CSM_BACKBONE_BUFFER_FRAMES",
        128,
        "unread frames of a request before its slot pauses",
        min=64,
        max=4096,
    )
    reader_stall_s: float = setting(
        "CSM_BACKBONE_READER_STALL_S", 30.0, "a request that stays paused for longer is ended", min=0.1
    )
    head_start_ms: int = setting(
        "CSM_BACKBONE_HEAD_START_MS",
        400,
        "graph runner, steps of more than 384 requests: while one has no audible frame yet, every second step leaves out "
        "those that are this far ahead of their listeners; 0: none does",
        min=0,
        max=60_000,
    )
    trace_steps: int = setting(
        "CSM_BACKBONE_TRACE_STEPS", 0, "every Nth step becomes a span, linked to its requests; 0 is none", min=0
    )
    stall_s: float = setting(
        "CSM_BACKBONE_STALL_S", 30.0, "seconds without a step after which the device counts as stuck", min=1
    )
