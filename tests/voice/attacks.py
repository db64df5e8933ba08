"""What is done to marked clips before the mark is looked for."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import soundfile
import soxr

RATE_HZ = 24000
Attack = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def resampled(audio: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    return soxr.resample(soxr.resample(audio, RATE_HZ, 16000), 16000, RATE_HZ)


def opus(audio: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """64 kb/s and back."""
    import av

    buffer = io.BytesIO()
    pcm = (np.clip(soxr.resample(audio, RATE_HZ, 48000), -1, 1) * 32767).astype(np.int16)
    with av.open(buffer, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=48000)
        stream.layout, stream.bit_rate = "mono", 64000
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = 48000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    buffer.seek(0)
    with av.open(buffer) as container:
        parts = [frame.to_ndarray() for frame in container.decode(audio=0)]
    decoded = np.concatenate([part.reshape(-1) for part in parts])
    scale = 32768 if decoded.dtype == np.int16 else 1
    return soxr.resample(decoded.astype(np.float32) / scale, 48000, RATE_HZ)


def mp3(audio: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """64 kb/s and back, by libsndfile, whose compression level sets the bit rate."""
    buffer = io.BytesIO()
    soundfile.write(
        buffer, np.clip(audio, -1, 1), RATE_HZ, format="MP3", subtype="MPEG_LAYER_III",
        bitrate_mode="CONSTANT", compression_level=0.6316,
    )  # fmt: skip
    buffer.seek(0)
    return soundfile.read(buffer, dtype="float32")[0]


def cropped(audio: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """A random stretch of 2 s and more: where the clip is longer, both ends may go."""
    length = int(draw.integers(min(2 * RATE_HZ, len(audio)), len(audio) + 1))
    start = int(draw.integers(0, len(audio) - length + 1))
    return audio[start : start + length]


def noisy(audio: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """White noise 20 dB below the speech."""
    level = np.sqrt(np.mean(audio**2) / 100)
    return (audio + level * draw.standard_normal(len(audio))).astype(np.float32)


ATTACKS: dict[str, Attack] = {
    "clean": lambda audio, draw: audio,
    "resampled to 16 kHz": resampled,
    "Opus, 64 kb/s": opus,
    "gain +12 dB": lambda audio, draw: np.clip(audio * 10 ** (12 / 20), -1, 1),
    "gain −12 dB": lambda audio, draw: audio * 10 ** (-12 / 20),
    "random crop": cropped,
    "noise at 20 dB": noisy,
}
