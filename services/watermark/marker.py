"""The embedding nets on streams: carrier columns in, mark columns out, each computed once.

Every 3x3 layer keeps the last two columns of its input, so the result equals that of the whole clip however
the stream is cut. Each layer lags one column behind the one before it. Columns before a stream's first or
after its last one are set to zero at every layer, as the stock's padding does. So streams at any position
share a pass.

Columns are the images' height, bins their width, channels innermost: a stream's history is then contiguous,
and convolutions take 2 to 5 times less than with bins as height.

Optimisations that leave the result unchanged but for roundings:
- the mark is zero from `message_band_size` bins up, and a cell depends on `context_columns` bins around it,
  so higher bins are never computed;
- the stock repeats carrier and message 32 times each on the carrier decoder's 96 input channels
  (silentcipher/server.py: encode_wav); their weights are summed once instead, which leaves 34 channels;
- on a CPU the widest layers take half the multiplications (kernels/winograd.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from services.watermark.kernels import (
    HISTORY,
    History,
    Layer,
    OutputLayer,
    operations_for,
    round_to_tf32,
    signal_for,
    weight_columns,
)
from services.watermark.kernels.winograd import factors
from services.watermark.state_pool import StatePool
from services.watermark.weights import Layer as StockLayer
from services.watermark.weights import Nets

_FEATURES = 32
_WIDE_INPUTS = 96  # in TF32 cuDNN and a kernel after it take no longer for a layer with so many
_TILED_OUTPUTS = 128  # a layer with fewer has too few products for Winograd's transforms to pay


class Marker:
    """The nets of one model, folded, and the state of all streams in them."""

    def __init__(
        self,
        nets: Nets,
        state: StatePool,
        precision: str = "fp32",
        operations: ModuleType | None = None,
        padding_slot: int = -1,
    ):
        """
        precision: of the factors in all 3x3 layers but the first, one of PRECISIONS; sums are in fp32.
        operations: default: the module for the nets' device.
        padding_slot: of padding rows, whose mark is undefined; -1: there are none.
        """
        shape = nets.hparams
        self.rows, self.band, self.bins = shape.rows, shape.message_band_size, shape.bins
        self._state, self._padding_slot = state, padding_slot
        self._operations = operations or operations_for(nets.enc_c.linear.weight.device, precision)
        self.signal = signal_for(self._operations)
        half, rounds = precision == "fp16", precision == "tf32"
        dtype = torch.float16 if half else torch.float32
        # Zero channels, to 36 or 40: cuDNN needs channel rows in multiples of 16 bytes for tensor cores.
        padding = 6 if half else 2
        opening, *encoder = nets.enc_c.main
        first, *middle, last = nets.dec_c.main
        folded = (_fold(first.conv.weight, padding), _fold(first.gate.weight, padding))
        self._layers = [
            _layer(opening, torch.float32, rounds),
            *(_layer(layer, dtype, rounds) for layer in encoder),
            _layer(first, dtype, rounds, folded),
            *(_layer(layer, dtype, rounds) for layer in middle),
        ]
        weight, bias, shift = _join(last)
        self._output = OutputLayer(weight.flatten(1).contiguous(), torch.cat([bias, shift]))
        self._encoders = len(nets.enc_c.main)
        linear = nets.enc_c.linear
        message = (linear.weight + linear.bias[:, None]).T  # [symbols, band]
        self._message = torch.nn.functional.pad(message, (0, self.rows - self.band)).contiguous()
        # State of each stream: the last columns of each 3x3 layer's input, and the columns of carrier and
        # message whose features are not computed yet.
        self._histories = [
            state.add_tensor(HISTORY, self.rows, layer.weight.shape[1], dtype=layer.weight.dtype)
            for layer in self._layers
        ]
        self._pending = state.add_tensor(self._encoders, self.rows, 2)
        self._lags = torch.arange(len(self._layers) + 1, device=linear.weight.device)[:, None, None]

    @torch.inference_mode()
    def step(
        self,
        rows: Tensor,
        carrier: Tensor,
        symbols: Tensor,
        valid: Callable[[Tensor], Tensor] | None,
        counts: Tensor | None = None,
    ) -> Tensor:
        """Advance streams by some columns each.

        rows: their slots [B]. carrier: magnitudes of bins 0 to rows - 1 [B, k, rows]. symbols: of each
        column [B, k].
        valid: lags in columns [n, 1, 1] → whether the column that far before each of these lies within
            its stream, [n, B, k]; None: all do.
        counts: columns that each stream brings [B]; None: all k.
        Returns: the mark's magnitude in the band [B, k, band] of the columns `context_columns` before these;
        each column has the mean square 1 over all bins.
        """
        state = self._state
        inside: Sequence[Tensor | None] = [None] * len(self._lags)
        if valid is not None:
            inside = valid(self._lags).unbind(0)
        pending, window = self.signal.open_windows(
            carrier,
            self._message,
            symbols,
            inside[0],
            state.tensor(self._pending),
            state.tensor(self._histories[0]),
            rows,
            counts,
        )
        for number, layer in enumerate(self._layers[:-1], start=1):
            history = History(state.tensor(self._histories[number]), rows, counts, self._padding_slot)
            extra = pending if number == self._encoders else None  # also input of the decoder's first layer
            window = self._operations.gated_layer(window, layer, history, inside[number], extra)
        mark = self._operations.output_layers(
            window, self._layers[-1], self._output, inside[-1], rows, self._padding_slot
        )
        return self.signal.scaled(mark, self.band, self.bins)


def _join(layer: StockLayer, weights: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Both convolutions as one: weight [2 * C, C_in, columns, bins], bias [2 * C] and shift [C]."""
    conv, gate = weights or (layer.conv.weight, layer.gate.weight)
    norm = layer.bn
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    weight = torch.cat([conv * scale[:, None, None, None], gate]).transpose(2, 3)
    bias = torch.cat([layer.conv.bias * scale, layer.gate.bias])
    return weight, bias, norm.bias - norm.running_mean * scale


def _layer(layer: StockLayer, dtype: torch.dtype, rounds: bool, weights: tuple[Tensor, Tensor] | None = None) -> Layer:
    weight, bias, shift = _join(layer, weights)
    if rounds and weight.shape[1] > 1:
        weight = round_to_tf32(weight)
    weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
    is_tiled = weight.device.type == "cpu" and dtype == torch.float32 and not rounds and len(weight) >= _TILED_OUTPUTS
    given = weight.shape[1]
    is_fused = weight.device.type == "cuda" and given > 1
    is_fused &= dtype == torch.float16 or (rounds and given < _WIDE_INPUTS)
    return Layer(
        weight,
        bias,
        shift,
        rounds,
        factors(weight) if is_tiled else None,
        weight_columns(weight) if is_fused else None,
    )


def _fold(weight: Tensor, padding: int) -> Tensor:
    """[C, 96, 3, 3] over features, 32 carriers, 32 messages → [C, 34 + padding, 3, 3], the last channels zero."""
    features, carrier, message = weight.split(_FEATURES, dim=1)
    summed = [part.sum(1, keepdim=True) for part in (carrier, message)]
    return torch.cat([features, *summed, weight.new_zeros(len(weight), padding, *weight.shape[2:])], dim=1)
