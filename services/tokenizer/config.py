"""Settings of the tokenizer service."""

from __future__ import annotations

from dataclasses import dataclass

from services.runtime.settings import ServerSettings, setting


@dataclass(frozen=True)
class TokenizerSettings(ServerSettings):
    """Read from the environment at start."""

    listen: str = setting("CSM_LISTEN", "127.0.0.1:50051", "address and port to listen on")
    device: str = setting("CSM_TOKENIZER_DEVICE", "cpu", "where Mimi encodes: cpu, cuda or cuda:N")
    threads: int = setting("CSM_TOKENIZER_THREADS", 1, "CPU threads of one encoding", min=1, max=256)
    max_text_chars: int = setting(
        "CSM_TOKENIZER_MAX_TEXT_CHARS",
        4096,
        "longest text of one segment, in characters",
        min=1,
        max=100_000,
    )
    max_segments: int = setting("CSM_TOKENIZER_MAX_SEGMENTS", 64, "segments of one request", min=1, max=1024)
    max_audio_s: float = setting("CSM_TOKENIZER_MAX_AUDIO_S", 120.0, "longest clip, seconds", min=0.08, max=600)
    encoders: int = setting("CSM_TOKENIZER_ENCODERS", 1, "passes of the encoder at once", min=1, max=64)
    batch: int | None = setting(
        "CSM_TOKENIZER_BATCH",
        None,
        "clips encoded in one pass; default: 32 on an accelerator, 1 on the CPU, where more do not help",
        min=1,
        max=1024,
    )
    batch_audio_s: float = setting(
        "CSM_TOKENIZER_BATCH_AUDIO_S",
        160.0,
        "clips of one pass times the longest of them, seconds, each of which takes 60 MB (on a GPU up to a quarter more); "
        "a longer clip goes alone",
        min=1,
        max=3600,
    )
    stall_s: float = setting("CSM_TOKENIZER_STALL_S", 120.0, "a pass longer than this means a stuck device", min=1)
    max_encodings: int = setting(
        "CSM_TOKENIZER_MAX_ENCODINGS",
        16,
        "EncodeAudio calls in flight, the waiting ones included",
        min=1,
        max=1024,
    )
    cache_mib: int = setting("CSM_TOKENIZER_CACHE_MIB", 64, "frames of clips seen before, MiB; 0 keeps none", min=0)
