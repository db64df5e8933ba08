"""Mimi's decoder as a short list of products, on the streaming state of many slots, in place.

Converts moshi's model once: every convolution becomes a product over windows of steps (kernels/), a transposed
convolution a product whose rows are several steps each, and layer scales are folded into the weights. The history
of all convolutions lies in one pool, keys and values in one ring per slot.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from moshi.models import MimiModel
from moshi.modules.conv import StreamingConv1d, StreamingConvTranspose1d
from moshi.modules.seanet import SEANetResnetBlock
from moshi.modules.transformer import LayerScale, StreamingTransformerLayer
from torch import Tensor, nn

from models.files import PartError
from services.codec.kernels import Layer, Rows, operations_for, plain, round_to_tf32

T = TypeVar("T")


class UnknownShape(PartError):
    """The model's structure differs from Mimi's decoder."""

    def __init__(self, where: str, reason: str):
        super().__init__("mimi", where, reason, "use a model of Mimi's own shape")


@dataclass(frozen=True)
class _History:
    """Where the steps before the pass lie in the pool, for one layer."""

    column: int
    steps: int


@dataclass(frozen=True)
class _Attention:
    """One layer of the transformer."""

    norm1: nn.LayerNorm
    qkv: Layer
    keys: Tensor  # [slots, H, ring, D]
    values: Tensor
    out: Layer
    norm2: nn.LayerNorm
    up: Layer
    down: Layer


@dataclass(frozen=True)
class _Stage:
    """Upsampling by a transposed convolution, then a residual block."""

    upsample: Layer
    upsample_history: _History
    wide: Layer
    wide_history: _History
    narrow: Layer


class DecoderNetwork:
    """Decodes on `slots` rows of state, without waiting for the device. The last one is of padding rows. Not thread-safe.

    precision: of products, one of kernels.PRECISIONS. In fp16 what lies between them is fp16 too, but for the
        transformer's residual stream.
    Raises: UnknownShape.
    """

    def __init__(self, mimi: MimiModel, *, slots: int, max_chunk_frames: int, precision: str = "fp32"):
        self._precision, self._padding_slot = precision, slots - 1
        self._dtype = torch.float16 if precision == "fp16" else torch.float32
        self._device = next(mimi.parameters()).device
        self._operations = operations_for(self._device, _lengths(mimi))
        self._width = 0  # of the pool, as far as it is assigned
        self._codebooks = mimi.num_codebooks
        quantizer: Any = mimi.quantizer
        self._semantic = quantizer.n_q_semantic
        self._bins = mimi.cardinality
        # moshi's modules declare no types of their attributes: they are read as Any and checked.
        self._read_quantizer(mimi)
        self._read_transformer(mimi, slots, max_chunk_frames)
        self._read_decoder(mimi)
        self._pool = torch.zeros(slots, self._width, device=self._device, dtype=self._dtype)
        self._offsets = torch.zeros(slots, dtype=torch.long, device=self._device)  # transformer steps so far

    @property
    def history_frames(self) -> int:
        """Frames before a frame that its audio depends on."""
        step = Fraction(1, self._steps_a_frame)  # in frames
        history = (
            self._steps_history.steps + len(self._layers) * self._context * step + self._first_history.steps * step
        )
        for stage in self._stages:
            history += stage.upsample_history.steps * step
            step /= stage.upsample.repeat
            history += stage.wide_history.steps * step
        return math.ceil(history + self._last_history.steps * step)

    def reset(self, slot: int) -> None:
        """Prepare `slot` for a new stream."""
        self._pool[slot] = 0
        self._offsets[slot] = 0

    def run(self, rows: Tensor, codes: Tensor) -> Tensor:
        """One pass. rows: slots [N] int64; codes: [N, T, K] int64. Returns: samples [N, T * samples_per_frame]."""
        operations, of_pass = self._operations, Rows(rows, self._padding_slot)
        product = partial(operations.product, rows=of_pass)

        def with_history(x: Tensor, history: _History) -> Tensor:
            return operations.exchange_history(self._pool, rows, history.column, x, history.steps)

        entries = F.embedding(codes + self._firsts, self._table)  # [N, T, K, D]
        latents = torch.cat([part.sum(2) for part in entries.tensor_split([self._semantic], dim=2)], dim=-1)
        x = with_history(product(latents, self._projection, history=self._steps_history.steps), self._steps_history)
        # A depthwise transposed convolution: each channel of a frame and of the frame before has its own factors.
        x = (x[:, 1:, None] * self._now + x[:, :-1, None] * self._before).flatten(1, 2)  # [N, steps, D]
        x = self._transform(x, of_pass)
        x = F.pad(x, (0, 0, self._first_history.steps, 0))
        x = product(
            with_history(x, self._first_history),
            self._first,
            history=self._stages[0].upsample_history.steps,
            after="elu",
        )
        histories = [*(stage.upsample_history for stage in self._stages[1:]), self._last_history]
        for stage, next_history in zip(self._stages, histories, strict=True):
            x = product(with_history(x, stage.upsample_history), stage.upsample, history=stage.wide_history.steps)
            x = with_history(x, stage.wide_history)
            x = operations.residual(x, stage.wide, stage.narrow, of_pass, history=next_history.steps)
        return operations.to_samples(with_history(x, self._last_history), *self._last)

    def _transform(self, x: Tensor, of_pass: Rows) -> Tensor:
        """x: [N, steps, D] → the same."""
        rows, product = of_pass.slots, partial(self._operations.product, rows=of_pass)
        operations, exact = self._operations, self._precision == "fp32"
        offsets = self._offsets[rows]
        steps = offsets[:, None] + torch.arange(x.shape[1], device=x.device)
        # In float64: in float32 the rounding grows with the stream, and a stream that is resumed in its middle differs.
        angles = steps[..., None].double() * self._frequencies
        cos, sin = angles.cos().float(), angles.sin().float()  # [N, steps, D / 2]
        for layer in self._layers:
            qkv = product(_normed(layer.norm1, x), layer.qkv)
            q = operations.rope_write(qkv, cos, sin, rows, offsets, layer.keys, layer.values)
            seen = operations.attend(q, rows, offsets, layer.keys, layer.values, self._context, exact)
            x = product(seen, layer.out, added=x)
            hidden = product(_normed(layer.norm2, x), layer.up, after="gelu")
            x = product(hidden, layer.down, added=x)
        self._offsets[rows] = offsets + x.shape[1]
        return x

    # Conversion of moshi's model.

    def _layer(self, weight: Tensor, bias: Tensor | None = None, taps: int = 1, repeat: int = 1) -> Layer:
        """weight: [repeat * O, taps * I]."""
        weight = weight.detach().float().contiguous()
        bias = None if bias is None else bias.detach().float().contiguous()
        if self._precision == "fp16":
            return Layer(weight.half(), None, bias, taps, repeat)
        if self._precision == "tf32":
            return Layer(round_to_tf32(weight), None, bias, taps, repeat, rounds=True)
        if self._operations is plain:
            return Layer(weight, None, bias, taps, repeat)
        return Layer(round_to_tf32(weight), weight - round_to_tf32(weight), bias, taps, repeat)

    def _add_history(self, steps: int, width: int) -> _History:
        self._width += steps * width
        return _History(self._width - steps * width, steps)

    def _conv(self, module: nn.Module, where: str) -> tuple[Layer, _History]:
        conv = _checked(module, StreamingConv1d, where).conv.conv
        if conv.stride != (1,) or conv.dilation != (1,) or conv.groups != 1 or module.pad_mode != "constant":
            raise UnknownShape(where, "a convolution with strides, dilation, groups or unusual padding")
        taps = conv.kernel_size[0]
        weight = conv.weight.permute(0, 2, 1).flatten(1)  # [O, taps * I]
        return self._layer(weight, conv.bias, taps), self._add_history(taps - 1, conv.in_channels)

    def _transposed(self, module: nn.Module, where: str) -> tuple[Layer, _History]:
        conv = _checked(module, StreamingConvTranspose1d, where).convtr.convtr
        stride = conv.stride[0]
        if conv.kernel_size != (2 * stride,) or conv.groups != 1:
            raise UnknownShape(where, "a kernel that is not twice its stride, or groups")
        # Output t * stride + r is the sum of step t's tap r and the step before's tap stride + r.
        taps = conv.weight.unflatten(2, (2, stride)).flip(2)  # [I, O, 2, stride], the earlier step first
        weight = taps.permute(3, 1, 2, 0).flatten(2).flatten(0, 1)  # [stride * O, 2 * I]
        bias = None if conv.bias is None else conv.bias.repeat(stride)
        return self._layer(weight, bias, 2, stride), self._add_history(1, conv.in_channels)

    def _read_quantizer(self, mimi: Any) -> None:
        halves = (mimi.quantizer.rvq_first, mimi.quantizer.rvq_rest)
        books = [layer for half in halves for layer in list(half.vq.layers)[: half.n_q]]
        for book in books:
            _checked(book.project_out, nn.Identity, "a codebook's projection")
        self._table = torch.cat([book._codebook.embedding for book in books]).detach().float()  # [K * bins, D]
        self._firsts = torch.arange(self._codebooks, device=self._device) * self._bins
        self._projection = self._layer(torch.cat([_matrix(half.output_proj) for half in halves], dim=1))
        if not hasattr(mimi, "upsample"):
            raise UnknownShape("upsample", "none: its frames are its encoder's steps")
        conv = _checked(mimi.upsample.convtr, StreamingConvTranspose1d, "upsample").convtr.convtr
        stride = conv.stride[0]
        if conv.groups != conv.in_channels or conv.kernel_size != (2 * stride,) or conv.bias is not None:
            raise UnknownShape("upsample", "not one kernel of twice its stride per channel")
        # [I, 1, 2, stride] → each [stride, I]
        self._now, self._before = (
            conv.weight.detach().float().unflatten(2, (2, stride))[:, 0].permute(1, 2, 0).contiguous()
        )
        self._steps_a_frame, self._steps_history = stride, self._add_history(1, conv.in_channels)

    def _read_transformer(self, mimi: Any, slots: int, max_chunk_frames: int) -> None:
        outer = mimi.decoder_transformer
        if outer.input_proj is not None or len(outer.output_projs) != 1:
            raise UnknownShape("decoder_transformer", "projections, or several outputs")
        _checked(outer.output_projs[0], nn.Identity, "decoder_transformer.output_projs")
        transformer = outer.transformer
        if transformer.positional_embedding != "rope":
            raise UnknownShape("decoder_transformer", "positions other than rope")
        if not len(transformer.layers):
            raise UnknownShape("decoder_transformer.layers", "none")
        self._layers = []
        for module in transformer.layers:
            where = "decoder_transformer.layers"
            attention: Any = _checked(module, StreamingTransformerLayer, where).self_attn
            if module.gating is not None:
                raise UnknownShape(where, "gates")
            plain = (module.activation is F.gelu, module.cross_attention is None,
                     not module.skip_self_attn, attention.kv_repeat == 1, attention.causal, attention.context,
                     not attention.weights_per_step, len(attention.in_projs) == 1, module.linear1.bias is None)  # fmt: skip
            if not all(plain):
                raise UnknownShape(where, "not causal self-attention with a context, and GELU")
            self._context = attention.context
            dim = attention.embed_dim // attention.num_heads
            # A step of a pass must not overwrite one that an earlier step of the pass attends to.
            ring = attention.context + max_chunk_frames * self._steps_a_frame - 1
            keys, values = torch.zeros(2, slots, attention.num_heads, ring, dim, device=self._device, dtype=self._dtype)
            scales: list[Any] = [
                each.scale if isinstance(each, LayerScale) else 1.0
                for each in (module.layer_scale_1, module.layer_scale_2)
            ]
            self._layers.append(_Attention(
                _checked(module.norm1, nn.LayerNorm, where), self._layer(attention.in_projs[0].weight), keys, values,
                self._layer((attention.out_projs[0].weight.T * scales[0]).T),
                _checked(module.norm2, nn.LayerNorm, where), self._layer(module.linear1.weight),
                self._layer((module.linear2.weight.T * scales[1]).T),
            ))  # fmt: skip
        half = torch.arange(dim // 2, device=self._device, dtype=torch.float32)
        self._frequencies = torch.exp(half * (-math.log(transformer.max_period) * 2 / dim)).double()

    def _read_decoder(self, mimi: Any) -> None:
        modules = list(mimi.decoder.model)
        if len(modules) < 6 or len(modules) % 3:
            raise UnknownShape("decoder", f"{len(modules)} modules")
        self._first, self._first_history = self._conv(modules[0], "decoder.0")
        self._stages = []
        for index in range(1, len(modules) - 2, 3):
            where = f"decoder.{index}"
            _check_elu(modules[index], where)
            upsample = self._transposed(modules[index + 1], f"{where} upsampling")
            block = _checked(modules[index + 2], SEANetResnetBlock, where)
            _checked(block.shortcut, nn.Identity, where)
            if len(block.block) != 4:
                raise UnknownShape(where, f"a residual block of {len(block.block)} modules")
            _check_elu(block.block[0], where)
            _check_elu(block.block[2], where)
            wide, (narrow, narrow_history) = self._conv(block.block[1], where), self._conv(block.block[3], where)
            if narrow_history.steps:
                raise UnknownShape(where, "a residual block's second convolution depends on earlier steps")
            self._stages.append(_Stage(*upsample, *wide, narrow))
        _check_elu(modules[-2], "decoder's end")
        conv = _checked(modules[-1], StreamingConv1d, "decoder's end").conv.conv
        if conv.out_channels != 1 or conv.bias is None:
            raise UnknownShape("decoder's end", "not one channel with a bias")
        _, self._last_history = self._conv(modules[-1], "decoder's end")
        self._last = (conv.weight.detach().float()[0].T.contiguous(), conv.bias.detach().float())


def _lengths(mimi: Any) -> Iterator[int]:
    """The summed length of each product."""
    yield 2 * mimi.quantizer.rvq_first.dimension
    for module in (module for part in (mimi.decoder_transformer, mimi.decoder) for module in part.modules()):
        if isinstance(module, nn.Linear):
            yield module.in_features
        elif isinstance(module, nn.Conv1d):
            yield module.in_channels * module.kernel_size[0]
        elif isinstance(module, nn.ConvTranspose1d):
            yield module.in_channels * 2


def _checked(module: object, kind: type[T], where: str) -> T:
    if not isinstance(module, kind):
        raise UnknownShape(where, f"{type(module).__name__} instead of {kind.__name__}")
    return module


def _check_elu(module: nn.Module, where: str) -> None:
    if _checked(module, nn.ELU, where).alpha != 1.0:
        raise UnknownShape(where, f"an ELU with alpha {module.alpha}")


def _matrix(module: nn.Module) -> Tensor:
    """The weight of a convolution of kernel 1 as a matrix [O, I]."""
    return _checked(module, nn.Conv1d, "the quantizer's projection").weight[:, :, 0]


def _normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
