"""Mark speech with a trained pair as the service does, cut crops of 2 s at random places, attack them, and look for the key:
with the stock silentcipher package as it is, and with our detector. Many processes, on a GPU if there is one.

    python watermark_score.py --model FOLDER --wavs FOLDER [--crops 300]        (from the repository's root)
    python watermark_score.py --model FOLDER --shards shard-00001.npz --bundle models/embedded --target-sdr 30.6
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import soxr

KEY = bytes([212, 211, 146, 56, 201])
RATE_HZ = 24000
CROP = 2 * RATE_HZ
MODEL_FILES = {"hparams": "hparams.yaml", "enc_c": "enc_c.ckpt", "dec_c": "dec_c.ckpt", "dec_m": "dec_m_0.ckpt"}


def coded(x: np.ndarray, form: str, subtype: str, rate_hz: int, level: float, **more: str) -> np.ndarray:
    """Through libsndfile's coder and back. level: its compression level, which sets the bit rate."""
    buffer = io.BytesIO()
    loud = np.clip(soxr.resample(x, RATE_HZ, rate_hz), -1, 1)
    soundfile.write(buffer, loud, rate_hz, format=form, subtype=subtype, compression_level=level, **more)
    buffer.seek(0)
    decoded, rate_hz = soundfile.read(buffer, dtype="float32")
    return soxr.resample(decoded, rate_hz, RATE_HZ)


def opus(x: np.ndarray) -> np.ndarray:
    """64 kb/s."""
    return coded(x, "OGG", "OPUS", 48000, 0.772)


def mp3(x: np.ndarray) -> np.ndarray:
    """64 kb/s."""
    return coded(x, "MP3", "MPEG_LAYER_III", 24000, 0.6316, bitrate_mode="CONSTANT")


def attacks(draw: np.random.Generator) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    def noisy(x: np.ndarray) -> np.ndarray:
        return x + draw.standard_normal(len(x)).astype(np.float32) * np.sqrt(np.mean(x**2) / 100)

    return {
        "clean": lambda x: x,
        "16 kHz": lambda x: soxr.resample(soxr.resample(x, RATE_HZ, 16000), 16000, RATE_HZ),
        "MP3 64 kb/s": mp3,
        "Opus 64 kb/s": opus,
        "noise 20 dB": noisy,
        "+12 dB": lambda x: np.clip(x * 4, -1, 1),
        "-12 dB": lambda x: x / 4,
    }


STOCK = ["clean", "16 kHz", "MP3 64 kb/s", "Opus 64 kb/s", "noise 20 dB"]


def utterances(args: argparse.Namespace) -> list[np.ndarray]:
    """Unmarked speech, float32, 2 s and more each."""
    if args.wavs:
        found = [soundfile.read(path, dtype="float32")[0] for path in sorted(args.wavs.glob("*.wav"))]
        return [clip for clip in found if len(clip) >= CROP]
    import torch

    change = None
    if args.bundle:
        from watermark_train import Revoiced

        change = Revoiced(args.bundle, args.device, every=1)
    clips = []
    for path in args.shards:
        with np.load(path) as shard:
            audio, frames = torch.from_numpy(shard["audio"]), shard["frames"]
        audio = (audio if change is None else change(audio)).numpy().astype(np.float32) / 32768
        ends = np.cumsum(frames) * 1920
        clips += [audio[end - n * 1920 : end] for end, n in zip(ends, frames, strict=True) if n * 1920 >= CROP]
    return clips


def embedder(folder: Path, sdr_db: float | None = None):
    from services.watermark.embedder import Embedder
    from services.watermark.level import RunningLevel
    from services.watermark.weights import load_nets

    nets = load_nets({role: folder / name for role, name in MODEL_FILES.items()})
    return Embedder(nets, KEY, message_sdr_db=sdr_db, level=RunningLevel())


def sdr_of(clean: np.ndarray, marked: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(clean**2) / np.mean((clean - marked) ** 2)))


def calibrate(folder: Path, clips: list[np.ndarray], target_db: float) -> None:
    """Write the message_sdr to hparams.yaml that gives speech the target on average."""
    path = folder / "hparams.yaml"
    lines = path.read_text().splitlines()
    asked = next(float(line.split(":")[1]) for line in lines if line.startswith("message_sdr:"))
    for _ in range(2):
        marker = embedder(folder, asked)
        asked = round(asked + target_db - float(np.mean([sdr_of(c, marker.embed(c)) for c in clips])), 2)
    text = [f"message_sdr: {asked}" if line.startswith("message_sdr:") else line for line in lines]
    path.write_text("\n".join(text) + "\n")
    print(f"message_sdr {asked} gives {target_db} dB", flush=True)


class Worker:
    """One process: the stock package, or our detector."""

    stock = detector = marker = None

    @classmethod
    def begin(cls, folder: Path, device: str) -> None:
        import torch

        torch.set_num_threads(1)
        cls.folder, cls.device = folder, device

    @classmethod
    def mark(cls, clip: np.ndarray) -> np.ndarray:
        cls.marker = cls.marker or embedder(cls.folder)
        return cls.marker.embed(clip)

    @classmethod
    def read(cls, job: tuple[str, int, bool, np.ndarray]) -> tuple[str, int, bool, bool]:
        """The silentcipher package as it is: its own loading, its own decoding, in training mode."""
        name, number, search, audio = job
        if cls.stock is None:
            import silentcipher

            cls.stock = silentcipher.get_model(
                "44.1k", ckpt_path=str(cls.folder), config_path=str(cls.folder / "hparams.yaml"), device=cls.device
            )
        result = cls.stock.decode_wav(audio.astype(np.float32), RATE_HZ, phase_shift_decoding=search)
        return name, number, search, bool(result["status"]) and list(result["messages"][0]) == list(KEY)

    @classmethod
    def find(cls, job: tuple[str, int, bool, np.ndarray]) -> tuple[str, int, bool, bool]:
        name, number, search, audio = job
        if cls.detector is None:
            from services.watermark.detector import Detector
            from services.watermark.weights import load_nets

            nets = load_nets({role: cls.folder / name for role, name in MODEL_FILES.items()})
            cls.detector = Detector(nets, offsets=2)
        return name, number, search, cls.detector.detect(audio.astype(np.float32), RATE_HZ, KEY).found


class Searched:
    """What the stock package reads with its search for the phase, all offsets of a crop in one batch: on a GPU 1,500 crops
    take a minute where the package takes an hour."""

    def __init__(self, folder: Path, device: str):
        from watermark_train import HOP, N_FFT, PERIOD, POWER, Pair

        self.pair, self.power = Pair().to(device), POWER
        self.pair.begin_from(folder)
        self.hop, self.n_fft, self.period, self.device = HOP, N_FFT, PERIOD, device

    def symbols(self, audio, offsets: list[int]):
        """audio [S] at the decoder's level -> likeliest symbols from each offset on, whole messages, [N, M, PERIOD]."""
        import torch
        import torch.nn.functional as F
        from watermark_train import BAND, layers

        size = (len(audio) // self.n_fft + 1) * self.n_fft
        cut = torch.stack([F.pad(audio[at:], (0, size - len(audio) + at)) for at in offsets])
        x = layers(self.pair.dec_m.main, self.pair.spectrum(cut[:, : size - 1]).abs()[:, None, :BAND], "clip")
        found = self.pair.dec_m.linear(x.transpose(2, 3)).squeeze(3).argmax(1)
        return found[:, : found.shape[1] // self.period * self.period].view(len(offsets), -1, self.period)

    def read(self, clip: np.ndarray) -> bytes | None:
        """silentcipher/server.py: decode_wav with phase_shift_decoding, for a clip that no offset shortens by a column."""
        import torch

        from services.watermark.key import symbols_key

        with torch.no_grad():
            audio = torch.from_numpy(clip).to(self.device)
            audio = audio * (self.power / audio.square().mean()).sqrt()
            found = self.symbols(audio, list(range(0, self.hop, 10)))
            counts = torch.stack([(found == symbol).sum(1) for symbol in range(5)], 2)  # [N, PERIOD, 5]
            counts = counts.cpu().numpy()  # where symbols or offsets tie, the first one counts
            best = counts.max(2).sum(1).argmax()
            return symbols_key(counts[best].argmax(1).tolist())


def attacked(job: tuple[str, int, bool, np.ndarray]) -> tuple[str, int, bool, np.ndarray]:
    name, number, search, audio = job
    return name, number, search, attacks(np.random.default_rng(number))[name](audio)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--wavs", type=Path)
    parser.add_argument("--shards", type=Path, nargs="*", default=[], help="of speech as the recorder writes it")
    parser.add_argument("--bundle", type=Path, help="send the shards' speech through its codec first")
    parser.add_argument("--crops", type=int, default=300)
    parser.add_argument("--target-sdr", type=float, help="first set the pair's message_sdr so that this comes out, dB")
    parser.add_argument("--search", type=int, nargs="*", default=[1, 0], help="with the stock's search for the phase")
    parser.add_argument("--batched", action=argparse.BooleanOptionalAction, default=False, help="the search, on a GPU")
    parser.add_argument("--ours", type=int, default=100, help="crops for our detector, and for false alarms")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--device", default="")
    parser.add_argument("--out", type=Path, help="a JSON file of the results")
    args = parser.parse_args()
    import torch

    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    draw = np.random.default_rng(0)
    clips = utterances(args)
    draw.shuffle(clips)
    clips = clips[: args.crops]
    if args.target_sdr:
        calibrate(args.model, clips[:30], args.target_sdr)
    results: dict[str, object] = {}

    def say(what: str, value: object, note: str = "") -> None:
        results[what] = value
        print(f"{time.strftime('%T')} {what}: {value} {note}", flush=True)
        if args.out:
            args.out.write_text(json.dumps(results, indent=1))

    context = multiprocessing.get_context("spawn")
    with context.Pool(args.workers, Worker.begin, (args.model, args.device)) as pool:
        marked = pool.map(Worker.mark, clips, chunksize=4)
        sdrs = [sdr_of(c, m) for c, m in zip(clips, marked, strict=True)]
        say("clips", len(clips))
        say("sdr_db", round(float(np.mean(sdrs)), 2), f"least {min(sdrs):.1f}")
        crops, plain = [], []
        for number in range(args.crops):
            which = number % len(clips)
            at = int(draw.integers(0, len(clips[which]) - CROP + 1))
            crops.append(marked[which][at : at + CROP])
            plain.append(clips[which][at : at + CROP])
        names = list(attacks(draw))
        jobs = pool.map(attacked, [(n, i, False, c) for n in names for i, c in enumerate(crops)], chunksize=8)
        if args.batched:
            searched = Searched(args.model, args.device)
            for name in STOCK:
                hits = [searched.read(c.astype(np.float32)) == KEY for n, _, _, c in jobs if n == name]
                say(f"as the stock with search, {name}", sum(hits), f"of {len(hits)}")
        for search in map(bool, args.search):
            wanted = [(n, i, search, c) for n, i, _, c in jobs if n in STOCK]
            read = pool.map(Worker.read, wanted, chunksize=4)
            for name in STOCK:
                hits = [hit for n, _, _, hit in read if n == name]
                say(f"stock {'with' if search else 'without'} search, {name}", sum(hits), f"of {len(hits)}")
        if args.ours:
            found = pool.map(Worker.find, [job for job in jobs if job[1] < args.ours], chunksize=4)
            for name in names:
                hits = [hit for n, _, _, hit in found if n == name]
                say(f"ours, {name}", sum(hits), f"of {len(hits)}")
            alarms = pool.map(Worker.find, [("", i, False, c) for i, c in enumerate(plain[: args.ours])], chunksize=4)
            say("ours, unmarked", sum(hit for *_, hit in alarms), f"of {len(alarms)}")


if __name__ == "__main__":
    main()
