"""The shapes of a SilentCipher model, as its `hparams.yaml` states them. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from models.files import PartError

# Mean power of the speech that SilentCipher was trained on (VCTK); the stock encoder scales every
# clip to it before its nets see it (silentcipher/server.py: average_energy_VCTK). -25.5 dBFS.
TRAINING_POWER = 0.002837200844477648

_NAMES = {  # field -> key in hparams.yaml
    "sample_rate_hz": "SR",
    "n_fft": "N_FFT",
    "hop_length": "HOP_LENGTH",
    "message_band_size": "message_band_size",
    "message_dim": "message_dim",
    "message_len": "message_len",
    "enc_n_layers": "enc_n_layers",
    "dec_c_n_layers": "dec_c_n_layers",
    "message_sdr_db": "message_sdr",
    "frame_level_normalization": "frame_level_normalization",
    "utterance_level_normalization": "utterance_level_normalization",
}


@dataclass(frozen=True)
class Hparams:
    """The parameters of a model that marking and detection use. Defaults: the public 44.1 kHz model
    (sony/silentcipher, 44_1_khz/73999_iteration)."""

    sample_rate_hz: int = 44100
    n_fft: int = 4096
    hop_length: int = 2048
    message_band_size: int = 1024
    message_dim: int = 5
    message_len: int = 21
    enc_n_layers: int = 3
    dec_c_n_layers: int = 4
    message_sdr_db: float = 47.0
    frame_level_normalization: bool = False
    utterance_level_normalization: bool = True

    def __post_init__(self) -> None:
        _require(self.sample_rate_hz >= 8000, "SR", "at least 8000")
        _require(self.n_fft >= 16 and self.n_fft % 2 == 0, "N_FFT", "even and at least 16")
        _require(self.hop_length * 2 == self.n_fft, "HOP_LENGTH", "half of N_FFT, as in the public models")
        _require(1 <= self.message_band_size <= self.bins, "message_band_size", f"between 1 and {self.bins}")
        # One symbol carries two bits; symbol 0 ends the message.
        _require(self.message_dim == 5, "message_dim", "5: four symbols of two bits and the terminator")
        _require(
            self.message_len >= 5 and (self.message_len - 1) % 4 == 0,
            "message_len",
            "four symbols a byte and one for the end",
        )
        _require(self.enc_n_layers >= 2, "enc_n_layers", "at least 2")
        _require(self.dec_c_n_layers >= 2, "dec_c_n_layers", "at least 2")

    @property
    def bins(self) -> int:
        """STFT bins, N_FFT / 2 + 1."""
        return self.n_fft // 2 + 1

    @property
    def key_bytes(self) -> int:
        """Bytes of a key: two bits a symbol, the last symbol ends the message."""
        return (self.message_len - 1) * 2 // 8

    @property
    def context_columns(self) -> int:
        """STFT columns (and bins) on each side that one marked cell depends on.

        One per 3x3 convolution; the carrier decoder's last layer is 1x1.
        """
        return self.enc_n_layers + self.dec_c_n_layers - 1

    @property
    def rows(self) -> int:
        """Bins that the marked band depends on."""
        return min(self.bins, self.message_band_size + self.context_columns)

    @property
    def message_seconds(self) -> float:
        """Length of one message, after which it repeats."""
        return self.message_len * self.hop_length / self.sample_rate_hz

    def to_yaml(self) -> str:
        """An hparams.yaml in the public file's layout, which the stock package reads too."""
        table: dict[str, Any] = {name: getattr(self, field) for field, name in _NAMES.items()}
        table.update(
            model_type=f"{self.sample_rate_hz / 1000:g}k",
            n_messages=1,
            ensure_negative_message=True,
            ensure_constrained_message=False,
            no_normalization=False,
        )
        return yaml.safe_dump(table)


def read_hparams(path: Path) -> Hparams:
    """Read an hparams.yaml; ignores keys that only training needs.

    Raises: PartError when it cannot be read, lacks a key, or describes a model that the
    streaming embedder does not support.
    """
    try:
        table = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PartError("watermark", str(path), f"cannot be read ({error})", "fetch it again") from error
    try:
        if not isinstance(table, dict):
            raise ValueError("no table of settings")
        kinds = [("ensure_negative_message", True), ("no_normalization", False), ("n_messages", 1)]
        for name, only in kinds:
            _require(table.get(name) == only, name, f"{only}, the only kind supported")
        return Hparams(**{field: _typed(table, field, name) for field, name in _NAMES.items()})
    except ValueError as error:
        raise PartError("watermark", str(path), str(error), "use the hparams.yaml of the model itself") from error


def _typed(table: dict[str, Any], field: str, name: str) -> Any:
    if name not in table:
        raise ValueError(f"{name} is missing")
    value, kind = table[name], type(getattr(Hparams, field))
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ValueError(f"{name} is {value!r}, must be of type {kind.__name__}")
    return value


def _require(condition: bool, name: str, rule: str) -> None:
    if not condition:
        raise ValueError(f"{name} must be {rule}")
