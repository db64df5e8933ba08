"""Settings of the gateway."""

from __future__ import annotations

from dataclasses import dataclass

from services.runtime.settings import ServerSettings, setting


@dataclass(frozen=True)
class GatewaySettings(ServerSettings):
    """Read from the environment at start."""

    listen: str = setting("CSM_LISTEN", "127.0.0.1:50050", "address and port to listen on")
    connection_grace_s: int = setting(
        "CSM_CONNECTION_GRACE_S", 86_400, "how long a conversation may go on after its connection is renewed", min=1
    )
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
    token_metrics: int = setting(
        "CSM_GATEWAY_TOKEN_METRICS",
        100,
        "token names that metrics tell apart; those of more are counted together, and 0 counts by none",
        min=0,
        max=10_000,
    )
    trust_trace: bool = setting(
        "CSM_GATEWAY_TRUST_TRACE",
        True,
        "continue callers' traces; off, each call starts a trace of its own, with a link to the caller's",
    )
    max_streams: int = setting("CSM_GATEWAY_MAX_STREAMS", 1024, "utterances spoken at once", min=1)
    max_verifications: int = setting("CSM_GATEWAY_MAX_VERIFICATIONS", 16, "clips verified at once", min=1)
    max_context_turns: int = setting("CSM_GATEWAY_MAX_CONTEXT_TURNS", 32, "context turns of one request", min=0)
    max_text_chars: int = setting(
        "CSM_GATEWAY_MAX_TEXT_CHARS", 100_000, "longest text of one request, or waiting in one conversation", min=1
    )
    max_audio_ms: int | None = setting(
        "CSM_MAX_AUDIO_MS", None, "longest audio of one request or turn; without it, what the text needs", min=80
    )
    unit_chars: int = setting(
        "CSM_GATEWAY_UNIT_CHARS", 240, "longest part of a text that one generation speaks", min=20, max=4096
    )
    first_unit_chars: int = setting(
        "CSM_GATEWAY_FIRST_UNIT_CHARS",
        30,
        "characters that a turn's first unit has before it may end at a clause; a sentence ends it at any length",
        min=1,
        max=4096,
    )
    first_wait_ms: int = setting(
        "CSM_GATEWAY_FIRST_WAIT_MS", 400, "wait for more text before a turn's first words are spoken as they are", min=0
    )
    sentence_wait_ms: int = setting(
        "CSM_GATEWAY_SENTENCE_WAIT_MS",
        60,
        "wait for text that shows that a full stop ends no sentence, where pieces come faster",
        min=0,
    )
    ceiling_factor: float = setting(
        "CSM_GATEWAY_CEILING_FACTOR",
        2.0,
        "longest speech of a unit, in lengths that its text is likely to have, plus 2 s; 0 is no limit; trained bundles",
        min=0,
        max=20,
    )
    silence_end_ms: int = setting(
        "CSM_GATEWAY_SILENCE_END_MS",
        1200,
        "near silence that ends a unit which has had its likely length; 0 never does; trained bundles",
        min=0,
        max=60_000,
    )
    empty_retries: int = setting(
        "CSM_GATEWAY_EMPTY_RETRIES", 2, "tries with other seeds when the model ends a unit at frame 0", min=0, max=8
    )
    max_conversations: int = setting("CSM_GATEWAY_MAX_CONVERSATIONS", 4096, "conversations open at once", min=1)
    conversation_idle_s: float = setting(
        "CSM_GATEWAY_CONVERSATION_IDLE_S", 3600.0, "a conversation in which nothing happens for longer is ended", min=1
    )
    max_search_s: float = setting(
        "CSM_GATEWAY_MAX_SEARCH_S", 3600.0, "longest that VerifyWatermarkStream may take, upload included", min=1
    )
    max_request_s: float = setting(
        "CSM_MAX_REQUEST_S",
        600.0,
        "longest a request may take, its deadline when it states none; a long text may take three times its speech",
        min=1,
        max=3600,
    )
    resumes: int = setting(
        "CSM_GATEWAY_RESUMES",
        3,
        "times that one request is resumed on other replicas after stages failed, all stages together",
        min=0,
        max=8,
    )
    listener_buffer_ms: int = setting(
        "CSM_LISTENER_BUFFER_MS",
        200,
        "how long a listener buffers before playing: for underruns, and half of it for the size of messages",
        min=0,
        max=10_000,
    )
    voices_url: str | None = setting(
        "CSM_VOICES_URL",
        None,
        "where named voices are kept: a folder, or what fsspec takes (s3://bucket/prefix, with the extra s3); "
        "default: csm/voices in the user's data folder",
    )
    voices_refresh_s: float = setting(
        "CSM_VOICES_REFRESH_S", 2.0, "how often the list of voices is read again, seconds", min=0.1, max=3600
    )
    voice_aliases: str | None = setting(
        "CSM_VOICE_ALIASES", None, "other names of voices: NAME=VOICE with commas between; NAME may have *"
    )
    audit_log: str | None = setting(
        "CSM_AUDIT_LOG",
        None,
        "where a record of each marked utterance goes, without text or audio: a file (JSON lines), or otlp",
    )
    audit_verify: float = setting(
        "CSM_AUDIT_VERIFY",
        0.0,
        "share of the recorded utterances whose mark is looked for afterwards",
        min=0,
        max=1,
    )
    riva: bool = setting("CSM_RIVA", True, "serve NVIDIA Riva's speech synthesis API on the same port")
    log_text: bool = setting("CSM_LOG_TEXT", False, "write callers' texts to the log")
    ramp_frames: str = setting(
        "CSM_GATEWAY_RAMP_FRAMES",
        "24",
        "most frames in the 1st, 2nd, … chunk; fewer while a stream is close to its playback deadline",
    )
