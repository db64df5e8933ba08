"""The message decoder of one model, laid out for reading short stretches.

A layer of the stock multiplies one convolution by the sigmoid of another and normalises the product. Here both are one
convolution, and the normalisation's scale is part of its weights. Columns that only serve as context are left out of
the last layers as soon as no column that is wanted depends on them.

Nearly all of a search's time is these convolutions', which run at the CPU's peak. Where it multiplies 8-bit integers
(VNNI) all but the first and the last layers may do so, at nearly twice the rate of bfloat16. The first layers read magnitudes,
whose range is too wide for that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from services.watermark.hparams import TRAINING_POWER, Hparams
from services.watermark.weights import Layer, MsgDecoder, Nets

_FLOAT_LAYERS = 3  # the first ones, which stay in floating point when the decoder is quantised
_RANGE = 12.0  # deviations of a layer's input, to each side, that 8 bits span: of 6 to 26, what changes votes least
_ZERO = 128  # what stands for 0 in 8 bits
_MAX_CHANGE = 0.02  # of a probability, on average, by 8 bits; the bundled decoder's is 0.005
_PROBE_COLUMNS = 12


def cpu_decoder(nets: Nets) -> MessageDecoder:
    """The decoder in the shortest numbers that this CPU multiplies and this model bears.

    bfloat16 is twice as fast where the CPU multiplies it, eight times where it has matrix units, and changes a probability
    by about 0.01. How wide a range 8 bits have to span follows from the model's normalisation; where that does not tell
    it truly, the model is not quantised.
    """
    has_bfloat16, has_vnni = (
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_avx512_bf16_supported", "_is_vnni_supported")
    )
    decoder = MessageDecoder(nets.dec_m, torch.bfloat16 if has_bfloat16 else torch.float32)
    if not has_vnni or not hasattr(torch.ops.onednn, "qconv_pointwise"):  # which torch does not promise to keep
        return decoder
    quantized = MessageDecoder(nets.dec_m, decoder.dtype, quantized=True)
    return quantized if _change(quantized, decoder, nets.hparams) <= _MAX_CHANGE else decoder


def _change(decoder: MessageDecoder, exact: MessageDecoder, shape: Hparams) -> float:
    """Mean change of a symbol's probability in noise with a spectrum as steep as speech's."""
    noise = torch.randn(2, shape.message_band_size, _PROBE_COLUMNS, generator=torch.Generator().manual_seed(0))
    tilt = torch.logspace(0.7, -1.3, shape.message_band_size)[:, None]
    usual = (0.375 * shape.n_fft * TRAINING_POWER) ** 0.5  # magnitude of white noise of the training level
    magnitudes = (noise.square().sum(0).sqrt() * tilt * usual)[None]
    with torch.inference_mode():
        first, second = (each(magnitudes, 0, 0).float().softmax(dim=1) for each in (decoder, exact))
    return float((first - second).abs().mean())


class MessageDecoder:
    """Immutable; threads may share it."""

    def __init__(self, stock: MsgDecoder, dtype: torch.dtype, quantized: bool = False):
        """quantized: multiply 8-bit integers where that is accurate enough; for CPUs with VNNI alone."""
        self.dtype, self.quantized = dtype, quantized
        layers = [layer for layer in stock.main if isinstance(layer, Layer)]
        eight_bit = range(_FLOAT_LAYERS, len(layers) - 1) if quantized else range(0)
        # An 8-bit layer's input is divided by its step in the weights of the layer before it.
        steps = [_step(layers[place - 1]) if place in eight_bit else 1.0 for place in range(len(layers) + 1)]
        self._layers: list[_Convolution] = []
        for place, layer in enumerate(layers):
            kind = _EightBit if place in eight_bit else _Float
            self._layers.append(kind(layer, dtype, steps[place], steps[place + 1] if place + 1 in eight_bit else None))
        linear = stock.linear
        self._linear = linear.weight.to(dtype), linear.bias.to(dtype)

    def __call__(self, magnitudes: Tensor, left: int, right: int) -> Tensor:
        """Symbol scores [B, symbols, T - left - right] of magnitudes [B, bins, T].

        left, right: columns of context. Where there are none the clip ends, for the decoder as for the stock.
        """
        x = magnitudes[:, None].to(self.dtype).contiguous(memory_format=torch.channels_last)
        left_at, right_at = left, right  # context columns that x still has
        for place, layer in enumerate(self._layers):
            behind = len(self._layers) - 1 - place  # layers that follow: so many columns of context they read
            padding = 1 - (left_at > behind), 1 - (right_at > behind)
            left_at, right_at = left_at - (left_at > behind), right_at - (right_at > behind)
            if padding[0] != padding[1]:
                x = functional.pad(x, padding, value=layer.zero).contiguous(memory_format=torch.channels_last)
            x = layer(x, [1, int(padding == (1, 1))])
        scores: Tensor = functional.linear(x.transpose(2, 3), *self._linear)[..., 0]
        return scores[..., left_at : scores.shape[-1] - right_at]


class _Convolution(ABC):
    """One layer: norm(conv(x) * sigmoid(gate(x))) = glu(conv2d(x, weight, bias)) + shift."""

    zero = 0

    def __init__(self, layer: Layer, dtype: torch.dtype, next_step: float | None):
        """next_step: of the next layer's input where that is of 8 bits: then so is this layer's output."""
        self._dtype, self._next_is_eight_bit = dtype, next_step is not None
        norm = layer.bn
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        if next_step is not None:
            scale, shift = scale / next_step, shift / next_step + (_ZERO + 0.5)  # half, since a conversion cuts off
        else:
            shift = shift.to(dtype)
        self._shift = shift[:, None, None]
        self._weight = torch.cat([layer.conv.weight * scale[:, None, None, None], layer.gate.weight])
        self._bias = torch.cat([layer.conv.bias * scale, layer.gate.bias])

    def __call__(self, x: Tensor, padding: list[int]) -> Tensor:
        product = functional.glu(self._convolve(x, padding), dim=1)
        if not self._next_is_eight_bit:
            return product.to(self._dtype).add_(self._shift)
        codes = product.float().add_(self._shift).clamp_(0, 255)
        return codes.to(torch.int32).to(torch.uint8)  # directly it takes three times as long

    @abstractmethod
    def _convolve(self, x: Tensor, padding: list[int]) -> Tensor: ...


class _Float(_Convolution):
    def __init__(self, layer: Layer, dtype: torch.dtype, step: float, next_step: float | None):
        super().__init__(layer, dtype, next_step)
        self._weight = self._weight.to(dtype).to(memory_format=torch.channels_last)
        self._bias = self._bias.to(dtype)

    def _convolve(self, x: Tensor, padding: list[int]) -> Tensor:
        return functional.conv2d(x, self._weight, self._bias, padding=padding)


class _EightBit(_Convolution):
    """Weights are rounded to 8 bits, each output channel's to a scale of its own."""

    zero = _ZERO

    def __init__(self, layer: Layer, dtype: torch.dtype, step: float, next_step: float | None):
        super().__init__(layer, dtype, next_step)
        self._step = step
        self._scales = self._weight.abs().amax((1, 2, 3)).clamp_min(1e-12) / 127
        self._zeros = torch.zeros(len(self._scales), dtype=torch.int32)
        rounded = (self._weight / self._scales[:, None, None, None]).round().to(torch.int8)
        pack = torch.ops.onednn.qconv_prepack
        self._weight = pack(rounded, self._scales, step, _ZERO, [1, 1], [1, 1], [1, 1], 1, None)

    def _convolve(self, x: Tensor, padding: list[int]) -> Tensor:
        both: Tensor = torch.ops.onednn.qconv_pointwise(
            x,
            self._step,
            _ZERO,
            self._weight,
            self._scales,
            self._zeros,
            self._bias,
            [1, 1],  # stride
            padding,
            [1, 1],  # dilation
            1,  # groups
            1.0,  # the output is of `dtype`, not of 8 bits
            0,
            self._dtype,
            "none",
            [],
            "",
        )
        return both


def _step(before: Layer) -> float:
    """What one code of a layer's 8-bit input stands for. The normalisation `before` it has a known deviation."""
    norm = before.bn
    return float(torch.sqrt((norm.weight.square() + norm.bias.square()).mean())) * _RANGE / _ZERO
