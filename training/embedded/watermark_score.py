"""Mark clips with the trained pair, attack them, look for the key: with our detector and the stock one.

python watermark_score.py --model FOLDER --wavs FOLDER [--clips 30]        (from the repository's root)
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import soxr

KEY = bytes([212, 211, 146, 56, 201])
RATE_HZ = 24000


def opus(x: np.ndarray) -> np.ndarray:
    """64 kb/s and back. Needs PyAV."""
    import av

    buffer = io.BytesIO()
    loud = soxr.resample(x, RATE_HZ, 48000)
    with av.open(buffer, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=48000)
        stream.layout, stream.bit_rate = "mono", 64000
        pcm = (np.clip(loud, -1, 1) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = 48000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    buffer.seek(0)
    with av.open(buffer) as container:
        parts = [f.to_ndarray().reshape(-1) for f in container.decode(audio=0)]
    return soxr.resample(np.concatenate(parts).astype(np.float32), 48000, RATE_HZ)


def attacks(draw: np.random.Generator) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    def noisy(x: np.ndarray) -> np.ndarray:
        return x + draw.standard_normal(len(x)).astype(np.float32) * np.sqrt(np.mean(x**2) / 100)

    return {
        "clean": lambda x: x,
        "16 kHz": lambda x: soxr.resample(soxr.resample(x, RATE_HZ, 16000), 16000, RATE_HZ),
        "opus 64 kb/s": opus,
        "+12 dB": lambda x: np.clip(x * 4, -1, 1),
        "-12 dB": lambda x: x / 4,
        "crop": lambda x: x[draw.integers(0, len(x) // 4) :],
        "noise 20 dB": noisy,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--wavs", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=30)
    parser.add_argument("--sdr", type=float, help="instead of the model's own")
    args = parser.parse_args()
    from services.watermark.detector import Detector
    from services.watermark.embedder import Embedder
    from services.watermark.weights import load_nets

    names = {"hparams": "hparams.yaml", "enc_c": "enc_c.ckpt", "dec_c": "dec_c.ckpt", "dec_m": "dec_m_0.ckpt"}
    nets = load_nets({role: args.model / name for role, name in names.items()})
    embedder, detector = Embedder(nets, KEY, message_sdr_db=args.sdr), Detector(nets)
    clips = [soundfile.read(path, dtype="float32")[0] for path in sorted(args.wavs.glob("*.wav"))]
    clips = [clip for clip in clips if len(clip) >= 2 * RATE_HZ][:: max(1, len(clips) // args.clips)][: args.clips]
    began = time.monotonic()
    marked = [embedder.embed(clip) for clip in clips]
    seconds = sum(map(len, clips)) / RATE_HZ
    sdr = [10 * np.log10(np.mean(c**2) / np.mean((c - m) ** 2)) for c, m in zip(clips, marked, strict=True)]
    print(f"{len(clips)} clips, {seconds:.0f} s; marking takes {(time.monotonic() - began) / seconds:.3f} of real time; "
          f"SDR mean {np.mean(sdr):.1f} least {min(sdr):.1f} dB", flush=True)  # fmt: skip
    for name, attack in attacks(np.random.default_rng(0)).items():
        found = [detector.detect(attack(clip).astype(np.float32), RATE_HZ, KEY) for clip in marked]
        exact = sum(d.decoded_key == KEY for d in found)
        share = np.mean([d.confidence for d in found])
        print(
            f"{name}: found {sum(d.found for d in found)} of {len(found)}, agreement {share:.3f}, key spelt {exact}",
            flush=True,
        )
    alarms = [detector.detect(clip, RATE_HZ, KEY) for clip in clips]
    print(f"unmarked: found {sum(d.found for d in alarms)} of {len(alarms)}", flush=True)
    stock(args.model, marked)


def stock(folder: Path, marked: list[np.ndarray]) -> None:
    """The silentcipher package as it is: its own loading, its own decoding, in training mode."""
    import silentcipher

    model = silentcipher.get_model("44.1k", ckpt_path=str(folder), config_path=str(folder / "hparams.yaml"))
    read = [model.decode_wav(clip, RATE_HZ, phase_shift_decoding=False) for clip in marked]
    hits = sum(r["status"] and bytes(r["messages"][0]) == KEY for r in read)
    print(f"stock decoder: reads the key in {hits} of {len(read)} marked clips, without a search for the phase")


if __name__ == "__main__":
    main()
