"""Settings of the gateway."""

from __future__ import annotations

from dataclasses import dataclass

from services.runtime.settings import ServerSettings, setting


@dataclass(frozen=True)
class GatewaySettings(ServerSettings):
    """Read from the environment at start."""

    listen: str = setting("CSM_LISTEN", "127.0.0.1:50050", "address and port to listen on")
    tokenizer: str = setting("CSM_TOKENIZER_ADDRESS", "127.0.0.1:50051", "tokenizer service, host:port")
    backbone: str = setting("CSM_BACKBONE_ADDRESS", "127.0.0.1:50052", "backbone service, host:port")
    codec: str = setting("CSM_CODEC_ADDRESS", "127.0.0.1:50053", "codec service, host:port")
    watermark: str = setting("CSM_WATERMARK_ADDRESS", "127.0.0.1:50054", "watermark service, host:port")
    upstream_ca_file: str | None = setting(
        "CSM_UPSTREAM_CA_FILE", None, "authorities of the stages' certificates, PEM; without it, plaintext"
    )
    upstream_cert_file: str | None = setting("CSM_UPSTREAM_CERT_FILE", None, "certificate to show to the stages, PEM")
    upstream_key_file: str | None = setting("CSM_UPSTREAM_KEY_FILE", None, "its key, PEM")
    tokens_file: str | None = setting("CSM_TOKENS_FILE", None, "bearer tokens of callers, and their limits, TOML")
    max_streams: int = setting("CSM_GATEWAY_MAX_STREAMS", 1024, "utterances spoken at once", min=1)
    max_verifications: int = setting("CSM_GATEWAY_MAX_VERIFICATIONS", 16, "clips verified at once", min=1)
    max_context_turns: int = setting("CSM_GATEWAY_MAX_CONTEXT_TURNS", 32, "context turns of one request", min=0)
    max_audio_ms: int = setting(
        "CSM_MAX_AUDIO_MS", 90_000, "longest audio of one request; what would be longer is cut", min=80, max=600_000
    )
    max_request_s: float = setting(
        "CSM_MAX_REQUEST_S", 600.0, "longest a request may take; its deadline when it states none", min=1, max=3600
    )
    resumes: int = setting(
        "CSM_GATEWAY_RESUMES",
        3,
        "times that one request is resumed on other replicas after stages failed, all stages together",
        min=0,
        max=8,
    )
    log_text: bool = setting("CSM_LOG_TEXT", False, "write callers' texts to the log")
    ramp_frames: str = setting(
        "CSM_GATEWAY_RAMP_FRAMES",
        "24",
        "most frames in the 1st, 2nd, … chunk; fewer while a stream is close to its playback deadline",
    )
