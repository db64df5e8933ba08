"""Settings of the watermark service, and its key. Knows no torch."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from models.bundle import Bundle
from services.runtime.settings import ServerSettings, SettingError, setting
from services.watermark.key import PUBLIC_KEY
from services.watermark.key_ring import Key, parse_ring

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WatermarkSettings(ServerSettings):
    """Read from the environment at start."""

    listen: str = setting("CSM_LISTEN", "127.0.0.1:50054", "address and port to listen on")
    key: str | None = setting(
        "CSM_WATERMARK_KEY",
        None,
        "the key: five bytes, as hex or as numbers with commas between. Several with ; between, newest first: the first "
        "marks, all are found; NAME=KEY names one",
        secret=True,
    )
    key_file: str | None = setting("CSM_WATERMARK_KEY_FILE", None, "a file with the key, or one a line, instead")
    device: str = setting("CSM_WATERMARK_DEVICE", "cpu", "where the nets run: cpu, cuda or cuda:N")
    precision: str | None = setting(
        "CSM_WATERMARK_PRECISION",
        None,
        "precision of the nets' products: fp32, tf32 or fp16; default: tf32 on a GPU, fp32 on the CPU. fp16 is the fastest "
        "on a GPU; marks then differ by -65 dB",
        choices=("fp32", "tf32", "fp16"),
    )
    threads: int = setting("CSM_WATERMARK_THREADS", 1, "CPU threads of one pass", min=1, max=256)
    workers: int | None = setting(
        "CSM_WATERMARK_WORKERS",
        None,
        "passes in flight; default: 2 on an accelerator, so that one is prepared while one computes, 1 on the CPU",
        min=1,
        max=256,
    )
    batch: int | None = setting(
        "CSM_WATERMARK_BATCH",
        None,
        "streams in one pass; default: 256 on an accelerator, 1 on the CPU, where more is no faster",
        min=1,
        max=4096,
    )
    streams: int = setting("CSM_WATERMARK_STREAMS", 16, "streams that can be open at once", min=1, max=4096)
    detections: int = setting("CSM_WATERMARK_DETECTIONS", 2, "Detect and DetectStream calls at once", min=1, max=256)
    search_time_s: float = setting(
        "CSM_WATERMARK_SEARCH_TIME_S",
        600.0,
        "longest time that one search for a mark works; the answer says how much was searched by then",
        min=1,
        max=86400,
    )
    max_detect_s: float = setting(
        "CSM_WATERMARK_MAX_DETECT_S", 120.0, "longest clip that Detect takes, seconds", min=1, max=600
    )
    sdr_db: float | None = setting(
        "CSM_WATERMARK_SDR_DB", None, "level of the mark below the speech, dB; default: the bundle's", min=0, max=60
    )
    level: str = setting(
        "CSM_WATERMARK_LEVEL",
        "running",
        "the speech level that the mark follows: the stream's own, or a fixed one",
        choices=("running", "fixed"),
    )
    opening_ms: int = setting(
        "CSM_WATERMARK_OPENING_MS",
        0,
        "the first of a stream that is given before the mark's look-ahead has come, marked as a clip of that length; 0: "
        "nothing is. A frame, 80 ms, makes the first audio come several frames earlier. At most the look-ahead and a frame",
        min=0,
        max=1000,
    )
    stall_s: float = setting("CSM_WATERMARK_STALL_S", 30.0, "a pass that takes longer counts as a stuck device", min=1)


def check_opening(settings: WatermarkSettings, lookahead_samples: int, bundle: Bundle) -> None:
    """Raises: SettingError when the opening is longer than what a stream may hold back.

    A stream gives nothing before its opening is there. The gateway pushes a pause's last words out with silence of the
    look-ahead and a frame, and calls a replica stuck that holds back much more.
    """
    longest_s = lookahead_samples / bundle.sample_rate_hz + 1 / bundle.frame_rate_hz
    if settings.opening_ms > longest_s * 1000:
        raise SettingError(
            f"CSM_WATERMARK_OPENING_MS={settings.opening_ms}: must be at most {int(longest_s * 1000)} with this bundle, "
            "its look-ahead and a frame: a longer opening would delay the first audio"
        )


def deployment_keys(settings: WatermarkSettings, bundle: Bundle, length: int) -> tuple[Key, ...]:
    """The keys of this deployment, `length` bytes each, newest first.

    Raises: SettingError when there is none, one cannot be used, or the newest is the public key and the bundle is not
    the bundled model. No message quotes a key.
    """
    name, text = "CSM_WATERMARK_KEY", settings.key
    if settings.key_file is not None:
        name = "CSM_WATERMARK_KEY_FILE"
        if settings.key is not None:
            raise SettingError("CSM_WATERMARK_KEY and CSM_WATERMARK_KEY_FILE are both set: set one")
        try:
            text = Path(settings.key_file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"{name}={settings.key_file!r}: cannot be read ({type(error).__name__})") from error
    if text is None:
        if not bundle.is_embedded:
            raise SettingError(
                f"CSM_WATERMARK_KEY is not set: bundle {bundle.id} needs a key of its own, {length} secret bytes "
                f"(make one with 'openssl rand -hex {length}'), there or in the file CSM_WATERMARK_KEY_FILE names"
            )
        text = ",".join(str(byte) for byte in bundle.watermark.options.get("public_key", PUBLIC_KEY))
    try:
        keys = parse_ring(text, length, name)
    except ValueError as error:
        raise SettingError(str(error)) from None
    if keys[0].secret == PUBLIC_KEY:
        if not bundle.is_embedded:
            raise SettingError(f"{name} is the key that Sesame published: choose secret bytes for bundle {bundle.id}")
        log.warning("marking with the public CSM key, which everyone can read and forge: for tests only")
    return keys
