"""The codec's Triton kernels against their plain twins on random inputs.

On a CUDA device they are compiled (`-m gpu`); elsewhere Triton's interpreter runs them, where Triton is
installed at all, which the CPU needs for nothing else.
"""

from __future__ import annotations

import pytest
import torch

from services.codec.kernels import PRECISIONS, Layer, Rows, fused, plain, round_to_tf32

LIMITS = {"fp32": 1e-5, "tf32": 1e-4, "fp16": 3e-4}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # or the twin's convolution rounds
    if request.param == "cpu" and torch.cuda.is_available():
        pytest.skip("the kernels are compiled here, not interpreted")
    torch.manual_seed(0)
    return torch.device(request.param)


def error(got, wanted) -> float:
    """‖got - wanted‖ / ‖wanted‖; NaN stays NaN and passes no comparison."""
    got, wanted = got.double(), wanted.double()
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(("steps", "history", "width"), [(2, 6, 512), (1, 1, 16), (6, 6, 24), (40, 2, 300), (3, 4, 64)])
def test_exchange_history(device, steps, history, width):
    """Streams in slots that lie anywhere; a pass shorter than what is kept, too."""
    pool = torch.randn(5, history * width + 24, device=device)
    rows = torch.tensor([3, 0, 2], device=device)
    x = torch.randn(3, history + steps, width, device=device)
    ours, theirs, kept = x.clone(), x.clone(), pool.clone()
    fused.exchange_history(pool, rows, 16, ours, history)
    plain.exchange_history(kept, rows, 16, theirs, history)
    assert torch.equal(ours, theirs) and torch.equal(pool, kept)


def layers(device, outputs, taps, width, repeat, precision, has_bias):
    """As a GPU takes it, and as its twin does."""
    weight = torch.randn(repeat * outputs, taps * width, device=device) / (taps * width) ** 0.5
    bias = torch.randn(repeat * outputs, device=device) if has_bias else None
    if precision == "fp16":
        return 2 * (Layer(weight.half(), None, bias, taps, repeat),)
    if precision == "tf32":
        return 2 * (Layer(round_to_tf32(weight), None, bias, taps, repeat, rounds=True),)
    cut = Layer(round_to_tf32(weight), weight - round_to_tf32(weight), bias, taps, repeat)
    return cut, Layer(weight, None, bias, taps, repeat)


def test_rounded():
    x = torch.tensor([1.0, -1.0, 1 + 2**-10, 1 + 2**-12, 1 + 2**-11, 0.0, 1e-30, -3.14159265])
    assert round_to_tf32(x).tolist() == pytest.approx(
        [1, -1, 1 + 2**-10, 1, 1 + 2**-10, 0, 1e-30, -3.140625], rel=2**-11
    )
    x = torch.randn(1000) * 10 ** torch.randn(1000)
    assert ((round_to_tf32(x) - x).abs() <= x.abs() * 2**-11).all()
    assert (round_to_tf32(x).view(torch.int32) % 2**13 == 0).all()


PRODUCTS = [  # streams, steps, inputs, taps, outputs, repeat, history, before, after, added
    (2, 1, 64, 1, 80, 1, 0, False, "gelu", False),
    (3, 2, 32, 7, 64, 1, 1, False, "elu", False),
    (2, 16, 64, 2, 16, 5, 2, False, "", False),
    (2, 40, 32, 3, 16, 1, 0, True, "elu", False),
    (3, 40, 32, 1, 24, 1, 2, False, "elu", True),
    (1, 70, 32, 1, 32, 1, 0, False, "", True),
]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tile", [(16, 32, 32, 4, 4), (64, 64, 32, 4, 4), (128, 128, 32, 8, 3)])
@pytest.mark.parametrize(
    ("n", "steps", "inputs", "taps", "outputs", "repeat", "history", "before", "after", "added"), PRODUCTS
)
def test_product(
    device, monkeypatch, precision, tile, n, steps, inputs, taps, outputs, repeat, history, before, after, added
):
    monkeypatch.setattr(fused, "tile_of", lambda *_: tile)
    cut, whole = layers(device, outputs, taps, inputs, repeat, precision, has_bias=after == "elu" or taps > 1)
    x = torch.randn(n, taps - 1 + steps, inputs, device=device)
    options = {"history": history, "before": before, "after": after}
    if added:
        options["added"] = torch.randn(n, 2 + steps * repeat, outputs, device=device)
    got, wanted = fused.product(x, cut, **options), plain.product(x, whole, **options)
    assert got.shape == wanted.shape == (n, history + steps * repeat, outputs) and got.dtype == wanted.dtype
    # ELU on the way in differs by its last bit, which then is a bit of TF32 or fp16 here and there.
    assert error(got[:, history:], wanted[:, history:]) < LIMITS[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tile", [(16, 32, 32, 4, 3), (64, 64, 64, 4, 3)])
@pytest.mark.parametrize(
    ("n", "steps", "hidden", "taps", "history"), [(2, 40, 32, 3, 2), (3, 9, 64, 3, 0), (1, 3, 256, 3, 1)]
)
def test_residual(device, monkeypatch, precision, tile, n, steps, hidden, taps, history):
    monkeypatch.setattr(fused, "residual_tile_of", lambda *_: tile)
    wide, wide_twin = layers(device, hidden, taps, 2 * hidden, 1, precision, True)
    narrow, narrow_twin = layers(device, 2 * hidden, 1, hidden, 1, precision, True)
    dtype = torch.float16 if precision == "fp16" else torch.float32
    x = torch.randn(n, taps - 1 + steps, 2 * hidden, device=device).to(dtype)
    got = fused.residual(x, wide, narrow, history=history)
    wanted = plain.residual(x, wide_twin, narrow_twin, history=history)
    assert got.shape == wanted.shape == (n, history + steps, 2 * hidden) and got.dtype == wanted.dtype == dtype
    assert error(got[:, history:], wanted[:, history:]) < LIMITS[precision]


def test_residual_without_biases(device):
    wide, narrow = layers(device, 32, 3, 64, 1, "tf32", False)[0], layers(device, 64, 1, 32, 1, "tf32", False)[0]
    x = torch.randn(2, 11, 64, device=device)
    assert error(fused.residual(x, wide, narrow), plain.residual(x, wide, narrow)) < LIMITS["tf32"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_padding_rows_change_nothing_for_the_others(device, precision):
    layer, _ = layers(device, 64, 3, 64, 1, precision, True)
    narrow, _ = layers(device, 64, 1, 32, 1, precision, True)
    wide, _ = layers(device, 32, 3, 64, 1, precision, True)
    dtype = torch.float16 if precision == "fp16" else torch.float32
    x, rows = torch.randn(4, 42, 64, device=device).to(dtype), Rows(torch.tensor([7, 1, 5, 5], device=device), 5)
    assert torch.equal(fused.product(x, layer, rows)[:2], fused.product(x, layer)[:2])
    assert torch.equal(fused.residual(x, wide, narrow, rows)[:2], fused.residual(x, wide, narrow)[:2])


def test_half_precision_holds_what_is_too_large_and_shows_what_is_no_number(device):
    layer, _ = layers(device, 32, 1, 64, 1, "fp16", True)
    x = torch.full((1, 3, 64), 60000.0, device=device).half()
    for each in (fused, plain):
        loud = each.product(x, Layer(torch.ones_like(layer.weight), None, layer.bias))
        assert loud.dtype == torch.float16 and (loud == 65504).all()
        assert torch.isnan(each.product(x * torch.nan, layer)).all()
        # A factor that is too large, given in fp32 or between the products of a residual block.
        factor = Layer(torch.full_like(layer.weight, 2.0**-16), None, layer.bias * 0)
        assert each.product(torch.full((1, 3, 64), 1e6, device=device), factor).unique().item() == 64 * 65504 * 2.0**-16
        wide = Layer(torch.ones_like(layer.weight), None, layer.bias)
        narrow = Layer(torch.full((64, 32), -(2.0**-10), device=device).half(), None, torch.zeros(64, device=device))
        assert each.residual(x, wide, narrow).unique().item() == 60000 - 32 * 64
        assert torch.isnan(each.residual(x * torch.nan, wide, narrow)).all()


@pytest.mark.parametrize(("steps", "taps", "width"), [(1, 3, 24), (150, 3, 64), (64, 2, 8)])
def test_to_samples(device, steps, taps, width):
    x = torch.randn(3, taps - 1 + steps, width, device=device)
    weight, bias = torch.randn(taps, width, device=device), torch.randn(1, device=device)
    assert error(fused.to_samples(x, weight, bias), plain.to_samples(x, weight, bias)) < 1e-5


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("heads", "dim", "context", "steps"),
    [(2, 8, 10, 1), (2, 8, 10, 40), (3, 32, 32, 16), (2, 64, 250, 2), (1, 64, 250, 32)],
)
def test_attention_over_rings(device, precision, heads, dim, context, steps):
    """Streams just begun, in the middle and round the ring more than once. What a stream may not see is NaN."""
    exact, dtype = precision == "fp32", torch.float16 if precision == "fp16" else torch.float32
    ring = context + steps - 1
    rows = torch.tensor([4, 0, 2, 1], device=device)
    offsets = torch.tensor([0, 7, context, 3 * ring + 5], device=device)
    shape = (5, heads, ring, dim)
    keys, values = torch.randn(shape, device=device).to(dtype), torch.randn(shape, device=device).to(dtype)
    qkv = torch.randn(4, steps, 3 * heads * dim, device=device).to(dtype)
    angles = (offsets[:, None, None] + torch.arange(steps, device=device)[:, None]) * torch.rand(
        dim // 2, device=device
    )
    turning = (qkv, angles.cos(), angles.sin(), rows, offsets)
    ours, theirs = (keys.clone(), values.clone()), (keys.clone(), values.clone())
    q, wanted = fused.rope_write(*turning, *ours), plain.rope_write(*turning, *theirs)
    assert error(q, wanted) < LIMITS[precision]
    for got, known in zip(ours, theirs, strict=True):
        assert error(got, known) < LIMITS[precision]
        written = (known != (keys if known is theirs[0] else values)).any(dim=-1)
        assert int(written.sum()) == 4 * heads * steps
    seen = plain.attend(wanted, rows, offsets, *theirs, context, exact)
    # The kernel rounds shares before it knows the highest of all scores, which makes other numbers of them.
    limit = 1e-5 if exact else 1e-3
    assert error(fused.attend(wanted, rows, offsets, *theirs, context, exact), seen) < limit
    for store in theirs:
        store[4, :, steps:] = float("nan")  # the stream that has just begun
        store[3] = float("nan")  # of no stream
    again = fused.attend(wanted, rows, offsets, *theirs, context, exact)
    assert error(again, seen) < limit
