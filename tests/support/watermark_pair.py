"""A SilentCipher pair that works, built by hand: the stock classes with weights set so that what the
encoder writes the decoder reads, in the stock file layout. No training, the same every time.

How it marks: a symbol s takes magnitude from every fifth stripe of the band, WIDTH bins wide.
How it reads: magnitudes become "how empty is this bin" at several scales (a gate that closes as the
magnitude grows), five channels look two stripes below to two above, and the last linear layer sums
each channel over the third stripe of every five; the emptiest comb is the symbol.
The BatchNorm statistics are those that the marks themselves have, so that training mode (which the
stock uses) and eval mode (which we use) agree.
"""

from __future__ import annotations

import gc
import warnings
from pathlib import Path

import numpy as np
import torch

from services.watermark.hparams import TRAINING_POWER, Hparams
from services.watermark.weights import build_nets, save_nets

WIDTH = 3
OPEN = 30.0  # gate bias: sigmoid(30) = 1 - 1e-13

# A message lasts 21 * 256 / 24000 = 0.224 s.
TINY = Hparams(sample_rate_hz=24000, n_fft=512, hop_length=256, message_band_size=60, message_sdr_db=15.0)
# The public model's rate, so that 24 kHz audio is resampled both ways.
TINY_44K = Hparams(sample_rate_hz=44100, n_fft=1024, hop_length=512, message_band_size=60, message_sdr_db=15.0)


def write_pair(folder: Path, hparams: Hparams = TINY) -> dict[str, Path]:
    """Write hparams.yaml, enc_c.ckpt, dec_c.ckpt and dec_m_0.ckpt; returns role → path."""
    torch.manual_seed(0)
    nets = build_nets(hparams)
    _set_writer(nets, hparams)
    _set_reader(nets, hparams)
    return save_nets(nets, folder)


def _clear(layer) -> None:
    for conv in (layer.conv, layer.gate):
        conv.weight.zero_()
        conv.bias.zero_()
    layer.gate.bias.fill_(OPEN)


def _set_writer(nets, hparams: Hparams) -> None:
    comb = torch.arange(hparams.message_band_size)[:, None] // WIDTH % 5 == torch.arange(5)[None, :]
    nets.enc_c.linear.weight.copy_(comb.float())
    nets.enc_c.linear.bias.zero_()
    for layer in nets.dec_c.main:
        _clear(layer)
        centre = layer.conv.kernel_size[0] // 2
        layer.conv.weight[0, 0, centre, centre] = 1.0
    first, last = nets.dec_c.main[0], nets.dec_c.main[-1]
    first.conv.weight.zero_()
    first.conv.weight[0, 64:96, 1, 1] = 1 / 32
    mean = comb.float().mean() * hparams.message_band_size / hparams.bins  # share of marked bins
    deviation = (mean - mean**2).sqrt()
    first.bn.running_mean[0] = mean
    first.bn.running_var[0] = deviation**2
    last.bn.bias[0] = mean / deviation  # unmarked bins come out as exactly zero


def _set_reader(nets, hparams: Hparams) -> None:
    layers = [layer for layer in nets.dec_m.main if hasattr(layer, "gate")]
    for layer in layers:
        _clear(layer)
    # Magnitude of an average cell, once the decoder has scaled the clip to the training level.
    usual = (0.375 * hparams.n_fft * TRAINING_POWER) ** 0.5
    scales = [0.02, 0.05, 0.1, 0.2, 0.4]
    for channel, scale in enumerate(scales):
        layers[0].conv.bias[channel] = 1.0
        layers[0].gate.weight[channel, 0, 1, 1] = -4 / (scale * usual)
        layers[0].gate.bias[channel] = 2.0
    for symbol in range(5):
        shift = (symbol - 2) * WIDTH  # one bin a layer at most
        for index, layer in enumerate(layers[1:]):
            step = max(-1, min(1, shift))
            shift -= step
            sources = slice(0, len(scales)) if index == 0 else symbol
            layer.conv.weight[symbol, sources, 1 + step, 1] = 1.0
    nets.dec_m.linear.weight[0] = (torch.arange(hparams.message_band_size) // WIDTH % 5 == 2).float()
    nets.dec_m.linear.bias.zero_()


def speech_like(seconds: float, sample_rate_hz: int = 24000, seed: int = 0) -> np.ndarray:
    """Noise in a falling spectrum with a syllable's rise and fall, about as loud as speech [n], float32."""
    rng = np.random.default_rng(seed)
    n = round(seconds * sample_rate_hz)
    spectrum = np.fft.rfft(rng.standard_normal(n))
    frequency = np.fft.rfftfreq(n, 1 / sample_rate_hz)
    shaped = np.fft.irfft(spectrum / (1 + frequency / 500.0), n)
    syllables = 0.6 + 0.4 * np.sin(2 * np.pi * 3.1 * np.arange(n) / sample_rate_hz + rng.uniform(0, 6))
    audio = shaped * syllables
    return (audio * np.sqrt(TRAINING_POWER / np.mean(audio**2))).astype(np.float32)


def stock_model(paths: dict[str, Path], device: str = "cpu"):
    """The stock package's model on the same files, with an STFT of its own sizes.

    Its STFT is one per process and keeps the first model's sizes; that is forgotten first.
    """
    import silentcipher
    from silentcipher.stft import Singleton

    Singleton._instances.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it never closes its files
        model = silentcipher.get_model(
            ckpt_path=str(paths["hparams"].parent), config_path=str(paths["hparams"]), device=device
        )
        gc.collect()
    return model
