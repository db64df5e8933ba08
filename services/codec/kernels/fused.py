"""Triton kernels for the operations of plain.py.

Most of a pass is matrix products, with a choice of precision: TF32 keeps 10 bits of each factor; `exact` splits
each factor into two such numbers and sums three products on the tensor cores, which equals fp32 but for the last
two or three bits. Weights are split once, at load.

The kernels read and write the slots' rows of pools and rings in place.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from services.codec.kernels import FP16_MAX, Layer, Rows, is_half, precision_of
from services.engine.graphs import has_large_blocks

_ELU, _GELU = 1, 2
_AFTER = {"": 0, "elu": _ELU, "gelu": _GELU}
_TILE_STEPS = 32  # steps of a ring per iteration
_QUERIES = 16  # the smallest tile of a product on tensor cores
_FP16_MAX = tl.constexpr(FP16_MAX)
_ALL = tl.constexpr(tl.PropagateNan.ALL)
_PROCESSORS = 128  # about; tiles are made smaller until there are enough for all


# Not specialised on what varies by pass: one compiled variant serves every size, 1 included.
@triton.jit(do_not_specialize=["column", "steps"])
def _exchange_kernel(pool, rows, x, pool_width, column, steps, width, HISTORY: tl.constexpr, BLOCK: tl.constexpr):
    stream = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < width
    stored = pool + tl.load(rows + stream) * pool_width + column + channel
    own = x + stream * (HISTORY + steps) * width + channel
    for step in tl.static_range(HISTORY):
        tl.store(own + step * width, tl.load(stored + step * width, mask=inside), mask=inside)
    # A step older than the pass moves up inside the pool: read it before it is overwritten.
    for step in tl.static_range(HISTORY):
        from_pool = step + steps < HISTORY
        older = tl.load(stored + (step + steps) * width, mask=(inside & from_pool) != 0, other=0.0)
        newer = tl.load(own + (step + steps) * width, mask=(inside & (from_pool == 0)) != 0, other=0.0)
        tl.store(stored + step * width, older + newer, mask=inside)


def exchange_history(pool: Tensor, rows: Tensor, column: int, x: Tensor, history: int) -> Tensor:
    count, steps, width = x.shape
    block = min(256, triton.next_power_of_2(width))
    _exchange_kernel[(count, triton.cdiv(width, block))](
        pool,
        rows,
        x,
        pool.shape[1],
        column,
        steps - history,
        width,
        HISTORY=history,
        BLOCK=block,
        num_warps=max(1, block // 64),
    )
    return x


@triton.jit
def _round_to_tf32(x):
    """As kernels.round_to_tf32. Tensor cores would truncate the low bits, which biases the result."""
    return ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def _factor(x, kind: tl.constexpr):
    """x as a factor of weights of a kind: fp16, or TF32."""
    return x.to(tl.float16) if kind == tl.float16 else _round_to_tf32(x)


@triton.jit
def _result(x, kind: tl.constexpr):
    """x as it is stored. fp16 saturates; NaN stays NaN."""
    if kind == tl.float16:
        x = tl.where(x > _FP16_MAX, _FP16_MAX, tl.where(x < -_FP16_MAX, -_FP16_MAX, x))
    return x.to(kind)


@triton.jit
def _elu(x):
    # NaN stays NaN: by default the lesser of NaN and a number is the number.
    return tl.where(x > 0, x, tl.exp(tl.minimum(x, 0.0, propagate_nan=_ALL)) - 1.0)


@triton.jit(do_not_specialize=["padding", "count", "steps", "x_steps", "added_steps"])
def _product(
    slots, padding, x, weight, low, bias, added, out, count, steps, x_steps, out_steps, added_steps, x_width, length,
    outputs, BEFORE: tl.constexpr, AFTER: tl.constexpr, BIAS: tl.constexpr, ADDED: tl.constexpr, PADDED: tl.constexpr,
    EXACT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(outputs, COLUMNS)
    tile = tl.program_id(0)
    if PADDED:  # padding rows come last: from the first one on there is nothing to do
        if tl.load(slots + tile // tiles * ROWS // steps) == padding:
            return
    row = tile // tiles * ROWS + tl.arange(0, ROWS)
    output = tile % tiles * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, BLOCK)
    # Rows and outputs beyond the last are read from the last one, and not written.
    known = tl.minimum(row, count - 1)
    stream, step = (known // steps).to(tl.int64), known % steps
    x_place = x + ((stream * x_steps + step) * x_width)[:, None] + k[None, :]
    w_place = tl.minimum(output, outputs - 1).to(tl.int64)[None, :] * length + k[:, None]
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    tl.assume(length >= BLOCK)  # or every wgmma would wait for the one ahead
    for start in range(0, length, BLOCK):
        values = tl.load(x_place + start)
        weights = tl.load(weight + w_place + start)
        if BEFORE:
            values = _elu(values.to(tl.float32))
        if x.dtype.element_ty != weights.dtype:  # fp32 that becomes fp16
            values = _result(values, weights.dtype)
        high = _factor(values, weights.dtype)
        if EXACT:
            lows = tl.load(low + w_place + start)
            total = tl.dot(values - high, weights, total, input_precision="tf32")
            total = tl.dot(high, lows, total, input_precision="tf32")
        total = tl.dot(high, weights, total, input_precision="tf32")
    inside = (row < count)[:, None] & (output < outputs)[None, :]
    if BIAS:
        total += tl.load(bias + output, mask=output < outputs, other=0.0)[None, :]
    # The last steps of each stream are the pass's own: those are written, and added.
    if ADDED:
        behind = (stream + 1) * added_steps - (steps - step)
        total += tl.load(added + (behind * outputs)[:, None] + output[None, :], mask=inside, other=0.0)
    if AFTER == 1:
        total = _elu(total)
    if AFTER == 2:
        total = 0.5 * total * (1.0 + tl.erf(total * 0.7071067811865476))
    behind = (stream + 1) * out_steps - (steps - step) * outputs
    tl.store(out + behind[:, None] + output[None, :], _result(total, out.dtype.element_ty), mask=inside)


def product(
    x: Tensor,
    layer: Layer,
    rows: Rows | None = None,
    *,
    history: int = 0,
    before: bool = False,
    after: str = "",
    added: Tensor | None = None,
) -> Tensor:
    outputs, length = layer.weight.shape
    steps = x.shape[1] - layer.taps + 1
    dtype = layer.weight.dtype if added is None else added.dtype
    out = x.new_empty(x.shape[0], history + steps * layer.repeat, outputs // layer.repeat, dtype=dtype)
    tile, columns, block, warps, stages = tile_of(
        x.shape[0] * steps, outputs, length, precision_of(layer), after, added is not None
    )
    stages = stages if has_large_blocks(x.device) else min(stages, 2)
    assert length % block == 0 and x.is_contiguous()
    slots, padding = (x, 0) if rows is None else rows
    _product[(triton.cdiv(x.shape[0] * steps, tile) * triton.cdiv(outputs, columns),)](
        slots, padding, x, layer.weight, layer.weight if layer.low is None else layer.low,
        layer.weight if layer.bias is None else layer.bias, x if added is None else added, out,
        x.shape[0] * steps, steps, x.shape[1], out.stride(0), 1 if added is None else added.shape[1],
        x.shape[2], length, outputs,
        BEFORE=before, AFTER=_AFTER[after], BIAS=layer.bias is not None, ADDED=added is not None,
        PADDED=rows is not None, EXACT=layer.low is not None, ROWS=tile, COLUMNS=columns, BLOCK=block,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


def tile_of(
    count: int, outputs: int, length: int, precision: str = "fp32", after: str = "", added: bool = False
) -> tuple[int, int, int, int, int]:
    """Rows, outputs and length of a tile, warps, stages: the largest tile that still occupies the device, as measured.

    after, added: see product(); with either, four warps have too few registers for a large tile.
    """

    def programs(rows: int, columns: int) -> int:
        return triton.cdiv(count, rows) * triton.cdiv(outputs, columns)

    block = 64 if precision == "fp16" and length % 64 == 0 else 32
    if precision == "fp16" and outputs > 64:
        if programs(128, 128) >= 2 * _PROCESSORS and after != "gelu":
            return 128, 64 if added else 128, block, 4, 3
        if programs(128, 128) <= _PROCESSORS * 3 // 4 <= programs(64, 128):
            return 64, 128, block, 4, 3
    if precision == "tf32" and outputs > 64 and programs(128, 128) >= _PROCESSORS:
        return (128, 128, block, 8, 4) if length >= 1024 else (64, 128, block, 4, 3)
    columns = 128 if outputs > 64 else 64 if outputs > 32 else 32
    if programs(128, columns) >= _PROCESSORS:
        return 128, columns, block, 8, 3
    columns = min(columns, 64)
    return (64, columns, block, 4, 4) if programs(64, columns) >= _PROCESSORS // 2 else (16, 32, block, 4, 4)


@triton.jit(do_not_specialize=["padding", "count", "steps", "x_steps"])
def _residual(
    slots, padding, x, wide, wide_bias, narrow, narrow_bias, out, count, steps, x_steps, out_steps,
    TAPS: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, PADDED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    if PADDED:  # as in _product
        if tl.load(slots + tl.program_id(0) * ROWS // steps) == padding:
            return
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    known = tl.minimum(row, count - 1)  # as in _product
    stream, step = (known // steps).to(tl.int64), known % steps
    k, unit = tl.arange(0, BLOCK), tl.arange(0, HIDDEN)
    own = x + (stream * x_steps + step) * WIDTH
    total = tl.zeros((ROWS, HIDDEN), dtype=tl.float32)
    for start in range(0, TAPS * WIDTH, BLOCK):
        values = _elu(tl.load(own[:, None] + (start + k)[None, :]).to(tl.float32))
        weights = tl.load(wide + unit[None, :] * (TAPS * WIDTH) + (start + k)[:, None])
        total = tl.dot(_factor(values, weights.dtype), weights, total, input_precision="tf32")
    hidden = _result(_elu(total + tl.load(wide_bias + unit)[None, :]), wide.dtype.element_ty)
    hidden = _factor(hidden, wide.dtype.element_ty)
    behind = (stream + 1) * out_steps - (steps - step) * WIDTH
    for first in tl.static_range(0, WIDTH, COLUMNS):
        output = first + tl.arange(0, COLUMNS)
        weights = tl.load(narrow + output[None, :] * HIDDEN + unit[:, None])
        total = tl.dot(hidden, weights, input_precision="tf32") + tl.load(narrow_bias + output)[None, :]
        total = _elu(total + tl.load(own[:, None] + ((TAPS - 1) * WIDTH + output)[None, :]))
        place = out + behind[:, None] + output[None, :]
        tl.store(place, _result(total, out.dtype.element_ty), mask=(row < count)[:, None])


def residual(x: Tensor, wide: Layer, narrow: Layer, rows: Rows | None = None, *, history: int = 0) -> Tensor:
    hidden, (count, steps, width) = len(wide.weight), x.shape
    has_biases = wide.bias is not None and narrow.bias is not None
    if wide.low is not None or not has_biases or hidden not in (32, 64, 128) or width != 2 * hidden:
        narrowed = product(x, wide, rows, before=True, after="elu")
        return product(narrowed, narrow, rows, history=history, added=x, after="elu")
    steps -= wide.taps - 1
    assert x.is_contiguous()
    out = x.new_empty(count, history + steps, width)
    tile, columns, block, warps, stages = residual_tile_of(count * steps, is_half(wide))
    slots, padding = (x, 0) if rows is None else rows
    _residual[(triton.cdiv(count * steps, tile),)](
        slots, padding, x, wide.weight, wide.bias, narrow.weight, narrow.bias, out, count * steps, steps, x.shape[1], out.stride(0),
        TAPS=wide.taps, WIDTH=width, HIDDEN=hidden, PADDED=rows is not None, ROWS=tile, COLUMNS=columns, BLOCK=block,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


def residual_tile_of(count: int, half: bool) -> tuple[int, int, int, int, int]:
    """Rows, outputs and length of a tile, warps, stages."""
    block = 64 if half else 32
    return (64, 64, block, 4, 3) if triton.cdiv(count, 64) >= _PROCESSORS // 2 else (16, 32, block, 4, 3)


@triton.jit(do_not_specialize=["steps"])
def _to_samples(x, weight, bias, out, steps, width, TAPS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    stream = tl.program_id(0).to(tl.int64)
    step = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, WIDTH)
    inside = (step < steps)[:, None] & (channel < width)[None, :]
    total = tl.zeros((BLOCK, WIDTH), dtype=tl.float32)
    for tap in tl.static_range(TAPS):
        place = (stream * (TAPS - 1 + steps) + step + tap)[:, None] * width + channel[None, :]
        values = tl.load(x + place, mask=inside, other=0.0)
        total += values * tl.load(weight + tap * width + channel, mask=channel < width, other=0.0)[None, :]
    samples = tl.sum(total, axis=1) + tl.load(bias)
    tl.store(out + stream * steps + step, samples, mask=step < steps)


def to_samples(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    taps, width = weight.shape
    steps = x.shape[1] - taps + 1
    out = weight.new_empty(x.shape[0], steps)
    _to_samples[(x.shape[0], triton.cdiv(steps, 64))](
        x, weight, bias, out, steps, width, TAPS=taps, WIDTH=triton.next_power_of_2(width), BLOCK=64, num_warps=4
    )
    return out


@triton.jit(do_not_specialize=["steps", "ring"])
def _rope_write(
    qkv, cos, sin, rows, offsets, keys, values, out, steps, ring,
    HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    stream, step = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = stream * steps + step
    column = tl.arange(0, WIDTH)
    inside = column < HEADS * DIM
    pair = row * (DIM // 2) + column % DIM // 2
    c, s = tl.load(cos + pair, mask=inside, other=0.0), tl.load(sin + pair, mask=inside, other=0.0)
    # (a + ib)(cos + i sin): the even column is a cos - b sin, the odd one b cos + a sin
    s = tl.where((column & 1) != 0, s, -s)
    from_q = qkv + row * 3 * HEADS * DIM + column
    from_k = from_q + HEADS * DIM
    other = 1 - 2 * (column & 1)
    q = tl.load(from_q, mask=inside, other=0.0) * c + tl.load(from_q + other, mask=inside, other=0.0) * s
    k = tl.load(from_k, mask=inside, other=0.0) * c + tl.load(from_k + other, mask=inside, other=0.0) * s
    v = tl.load(from_k + HEADS * DIM, mask=inside, other=0.0)
    at = (tl.load(offsets + stream) + step) % ring
    place = ((tl.load(rows + stream) * HEADS + column // DIM) * ring + at) * DIM + column % DIM
    tl.store(out + row * HEADS * DIM + column, q, mask=inside)
    tl.store(keys + place, k, mask=inside)
    tl.store(values + place, v, mask=inside)


def rope_write(
    qkv: Tensor, cos: Tensor, sin: Tensor, rows: Tensor, offsets: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    count, steps = qkv.shape[:2]
    _, heads, ring, dim = keys.shape
    out = qkv.new_empty(count, steps, heads, dim)
    _rope_write[(count, steps)](
        qkv, cos, sin, rows, offsets, keys, values, out, steps, ring,
        HEADS=heads, DIM=dim, WIDTH=triton.next_power_of_2(heads * dim), num_warps=4,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["steps", "ring", "context"])
def _attend(
    q, rows, offsets, keys, values, out, steps, ring, context, scale,
    HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr,
    TILE: tl.constexpr, TILES: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    stream, head, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    first = tl.load(offsets + stream) + part * QUERIES
    last = first + tl.minimum(QUERIES, steps - part * QUERIES) - 1
    start = tl.maximum(first - context + 1, 0)
    own = tl.arange(0, QUERIES)
    column = tl.arange(0, WIDTH)
    fits = (column < DIM)[None, :]
    here = (part * QUERIES + own < steps)[:, None] & fits
    place = (((stream * steps + part * QUERIES + own) * HEADS + head) * DIM)[:, None] + column[None, :]
    query = tl.load(q + place, mask=here, other=0.0)
    precision: tl.constexpr = "tf32x3" if EXACT else "tf32"
    if not EXACT:
        query = _factor(query, keys.dtype.element_ty)
    cache = (tl.load(rows + stream) * HEADS + head) * ring * DIM
    best = tl.full((QUERIES,), float("-inf"), dtype=tl.float32)
    weight = tl.zeros((QUERIES,), dtype=tl.float32)
    sums = tl.zeros((QUERIES, WIDTH), dtype=tl.float32)
    for tile in range(TILES):
        at = start + tile * TILE + tl.arange(0, TILE)
        known = (at <= last)[:, None] & fits
        place_kv = cache + ((at % ring) * DIM)[:, None] + column[None, :]
        key = tl.load(keys + place_kv, mask=known, other=0.0)
        value = tl.load(values + place_kv, mask=known, other=0.0)
        if not EXACT:
            key, value = _factor(key, keys.dtype.element_ty), _factor(value, keys.dtype.element_ty)
        scores = tl.dot(query, tl.trans(key), input_precision=precision) * scale
        ago = (first + own)[:, None] - at[None, :]
        scores = tl.where((at <= last)[None, :] & (ago >= 0) & (ago < context), scores, float("-inf"))
        new = tl.maximum(best, tl.max(scores, axis=1))
        held = tl.where(new == float("-inf"), 0.0, new)  # a row without any score yet
        shares = tl.exp(scores - held[:, None])
        fade = tl.exp(best - held)
        weight = weight * fade + tl.sum(shares, axis=1)
        if not EXACT:
            shares = _factor(shares, keys.dtype.element_ty)
        sums = sums * fade[:, None] + tl.dot(shares, value, input_precision=precision)
        best = new
    tl.store(out + place, sums / weight[:, None], mask=here)


def attend(
    q: Tensor, rows: Tensor, offsets: Tensor, keys: Tensor, values: Tensor, context: int, exact: bool = True
) -> Tensor:
    count, steps, heads, dim = q.shape
    out = q.new_empty(count, steps, heads * dim)
    _attend[(count, heads, triton.cdiv(steps, _QUERIES))](
        q, rows, offsets, keys, values, out, steps, keys.shape[2], context, 1 / math.sqrt(dim),
        HEADS=heads, DIM=dim, WIDTH=max(16, triton.next_power_of_2(dim)), QUERIES=_QUERIES, TILE=_TILE_STEPS,
        TILES=triton.cdiv(context + _QUERIES - 1, _TILE_STEPS), EXACT=exact, num_warps=4,
    )  # fmt: skip
    return out
