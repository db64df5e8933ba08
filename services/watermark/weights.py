"""SilentCipher's three nets and their files: the stock modules, filled from the stock file layout.

The package's own loader never calls `.eval()`, so its BatchNorm would take statistics from
the batch and mix requests. Here the nets are always in eval mode.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from models.checkpoint import fill, read_pickle
from services.watermark.hparams import Hparams, read_hparams

with warnings.catch_warnings():
    # pydub, which the package imports for its file API alone, warns where there is no ffmpeg.
    warnings.simplefilter("ignore")
    from silentcipher.model import CarrierDecoder, Encoder, Layer, MsgDecoder

__all__ = ["FILES", "Layer", "MsgDecoder", "Nets", "build_nets", "load_nets", "save_nets", "write_random"]

PART = "watermark"
FILES = {"hparams": "hparams.yaml", "enc_c": "enc_c.ckpt", "dec_c": "dec_c.ckpt", "dec_m": "dec_m_0.ckpt"}


@dataclass(frozen=True)
class Nets:
    """The stock modules of one model, in eval mode; immutable, shared by all streams.

    enc_c: carrier magnitudes [B, 1, F, T] → features [B, 32, F, T]; its `linear` spells symbols.
    dec_c: features, carrier and message [B, 96, F, T] → mark [B, 1, F, T].
    dec_m: magnitudes [B, 1, F, T] → symbol scores [B, 1, 5, T].
    """

    hparams: Hparams
    enc_c: Encoder
    dec_c: CarrierDecoder
    dec_m: MsgDecoder


def build_nets(hparams: Hparams) -> Nets:
    """The stock nets of that shape with torch's initial weights, on torch's current default device."""
    stock_config = argparse.Namespace(ensure_negative_message=True, no_normalization=False)
    nets = Nets(
        hparams,
        # 32 features and 3 * 32 inputs are fixed in the package (silentcipher/server.py).
        Encoder(32, hparams.enc_n_layers, hparams.message_dim, hparams.message_band_size, hparams.n_fft),
        CarrierDecoder(stock_config, 96, hparams.dec_c_n_layers, hparams.message_band_size),
        MsgDecoder(hparams.message_dim, hparams.message_band_size),
    )
    for module in _modules(nets).values():
        module.eval().requires_grad_(False)
    return nets


def load_nets(
    files: Mapping[str, Path], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Nets:
    """Load the nets from `files`: role (hparams, enc_c, dec_c, dec_m) → path, as the bundle resolves them.

    Raises: PartError when a file is missing, truncated, or does not fit hparams.
    """
    hparams = read_hparams(files["hparams"])
    with torch.device("meta"):
        nets = build_nets(hparams)
    for role, module in _modules(nets).items():
        tensors = read_pickle(PART, files[role], device)
        fill(module, tensors.items(), part=PART, source=str(files[role]), dtype=dtype)
    return nets


def save_nets(nets: Nets, folder: Path) -> dict[str, Path]:
    """Write the files that `load_nets` and the stock package read; returns role → path."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {role: folder / name for role, name in FILES.items()}
    paths["hparams"].write_text(nets.hparams.to_yaml())
    for role, module in _modules(nets).items():
        torch.save(module.state_dict(), paths[role])
    return paths


def write_random(folder: Path, hparams: Hparams, seed: int) -> dict[str, Path]:
    """Write untrained nets with weights from `seed`: they mark, but no decoder can read the mark."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return save_nets(build_nets(hparams), folder)


def _modules(nets: Nets) -> dict[str, nn.Module]:
    return {"enc_c": nets.enc_c, "dec_c": nets.dec_c, "dec_m": nets.dec_m}
