"""Triton kernels against the reference operations on random inputs.

On a CUDA device they are compiled (`-m gpu`); elsewhere Triton's interpreter runs them, where Triton is
installed at all, which the CPU needs for nothing else.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.bundle import GeneratorPart, LlamaShape
from services.backbone.blocks import BLOCK_TOKENS
from services.backbone.frame_step import FrameStep, SlotState
from services.backbone.fused_llama import KernelPlan
from services.backbone.kernels import reference, row_attention, split_matmul, triton_ops
from services.backbone.model import build_model, init_random, rope_table
from services.backbone.noise import gumbel
from services.backbone.sampling import sample
from support.triton_interpreter import multiply_bf16

multiply_bf16()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cpu" and torch.cuda.is_available():
        pytest.skip("the kernels are compiled here, not interpreted")
    torch.manual_seed(0)
    return torch.device(request.param)


DTYPES = [torch.float32, torch.bfloat16]
# CSM-1B's own, the largest, where a GPU computes them: four queries a key of 2^n columns are the last one's too.
HEADS = [(4, 2, 16), (6, 6, 48), pytest.param(32, 8, 64, marks=pytest.mark.gpu), (8, 2, 128)]


def error(got, wanted) -> float:
    """‖got - wanted‖ / ‖wanted‖; NaN stays NaN and passes no comparison."""
    got, wanted = got.double(), wanted.double()
    return float((got - wanted).norm() / wanted.norm())


def limit(dtype) -> float:
    return 1e-5 if dtype == torch.float32 else 1e-2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("count", "width"), [(1, 64), (5, 384), (3, 2048)])
def test_add_norm(device, dtype, count, width):
    x = torch.randn(count, width, device=device) * 3
    delta = torch.randn(count, width, device=device, dtype=dtype) * 3
    scale = torch.rand(width, device=device, dtype=dtype)
    parts = torch.randn(3, count, width, device=device)
    for given in (None, delta, parts):
        ours, theirs = x.clone(), x.clone()
        normed = triton_ops.add_norm(ours, given, scale, 1e-5)
        assert error(normed, reference.add_norm(theirs, given, scale, 1e-5)) < limit(dtype)
        assert normed.dtype == dtype and error(ours, theirs) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("count", "width"), [(1, 160), (3, 1536), (2, 8192)])
def test_silu_mul(device, dtype, count, width):
    gate_up = torch.randn(count, 2 * width, device=device, dtype=dtype) * 4
    assert error(triton_ops.silu_mul(gate_up), reference.silu_mul(gate_up)) < limit(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_embed_frames(device, dtype):
    embeddings = torch.randn(8, 67, 384, device=device, dtype=dtype)
    codes = torch.randint(67, (5, 8), device=device)
    assert error(triton_ops.embed_frames(codes, embeddings), reference.embed_frames(codes, embeddings)) < limit(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), HEADS)
@pytest.mark.parametrize("splits", [1, 5])
def test_rope_and_paged_attention(device, dtype, heads, kv_heads, head_dim, splits):
    """Rows of four slots, two of one slot among them, in blocks that lie anywhere."""
    width, blocks, longest = 24, 100, 24 * BLOCK_TOKENS
    shape = LlamaShape(1, heads, kv_heads, heads * head_dim, 1, longest)
    rope = torch.view_as_real(rope_table(shape, device)).flatten(1)
    tables = torch.randperm(blocks, device=device)[: 4 * width].view(4, width).int()
    slots = torch.tensor([2, 0, 3, 3, 1], device=device)
    positions = torch.tensor([0, 17, 200, 201, longest - 1], device=device)
    qkv = torch.randn(5, (heads + 2 * kv_heads) * head_dim, device=device, dtype=dtype)
    stores = torch.randn(2, kv_heads, blocks, BLOCK_TOKENS, head_dim, device=device, dtype=dtype)
    ours, theirs = stores.clone(), stores.clone()
    q = triton_ops.rope_write(qkv, rope, slots, positions, tables, *ours, heads)
    wanted = reference.rope_write(qkv, rope, slots, positions, tables, *theirs, heads)
    assert error(q, wanted) < limit(dtype)
    assert error(ours, theirs) < limit(dtype)
    written = (theirs != stores).any(dim=-1)  # [2, KV, blocks, BLOCK_TOKENS]
    assert int(written.sum()) == 2 * kv_heads * 5
    assert torch.equal(ours[~written], stores[~written])
    # Rows behind a stream's own are stale data of other streams and must not count.
    attended = triton_ops.attend(wanted, slots, positions, tables, *theirs, splits)
    assert error(attended, reference.attend(wanted, slots, positions, tables, *theirs)) < limit(dtype)
    for store in theirs:
        store[:, tables[2, 0].long(), 1:] = float("nan")
    again = triton_ops.attend(wanted, slots, positions, tables, *theirs, splits)
    assert torch.equal(again[0], attended[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), HEADS)
@pytest.mark.parametrize("splits", [1, 5])
@pytest.mark.parametrize("overlap", [False, pytest.param(True, marks=pytest.mark.gpu)])
def test_step_attention(device, dtype, heads, kv_heads, head_dim, splits, overlap, monkeypatch):
    """One row of each of four slots; a fifth row is padding. What lies behind a sequence's own positions has no effect."""
    if overlap and device.type == "cpu":
        pytest.skip("only a GPU's launches overlap")
    monkeypatch.setattr(row_attention, "can_attend", lambda *_: False)  # test_row_attention.py has that kernel
    width, blocks, longest = 24, 100, 24 * BLOCK_TOKENS
    shape = LlamaShape(1, heads, kv_heads, heads * head_dim, 1, longest)
    rope = torch.view_as_real(rope_table(shape, device)).flatten(1)
    tables = torch.randperm(blocks, device=device)[: 4 * width].view(4, width).int()
    slots, positions = torch.tensor([2, 0, 3, 1], device=device), torch.tensor([0, 17, 256, longest - 1], device=device)
    qkv = torch.randn(4, (heads + 2 * kv_heads) * head_dim, device=device, dtype=dtype)
    stores = torch.randn(2, kv_heads, blocks, BLOCK_TOKENS, head_dim, device=device, dtype=dtype)
    stores[:, :, tables[2, 0].long(), 1:] = float("nan")
    stores[:, :, tables[0, 1].long(), 1:] = float("nan")  # the position itself, 17, too
    ours, theirs = stores.clone(), stores.clone()
    attended = triton_ops.step_attend(qkv, rope, slots, positions, tables, *ours, heads, splits, overlap)
    wanted = reference.step_attend(qkv, rope, slots, positions, tables, *theirs.nan_to_num_(), heads)
    assert error(attended, wanted) < limit(dtype)
    assert error(ours.nan_to_num_(), theirs) < limit(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 2, 16), (6, 6, 48), (8, 2, 128)])
@pytest.mark.parametrize("position", [2, 16, 31])
@pytest.mark.parametrize("picks", [False, True])
@pytest.mark.parametrize("overlap", [False, pytest.param(True, marks=pytest.mark.gpu)])
def test_aligned_attention(device, dtype, heads, kv_heads, head_dim, position, picks, overlap):
    """Three slots at one position, each with blocks of its own; another slot's blocks lie behind. Rows may come from a table."""
    if overlap and device.type == "cpu":
        pytest.skip("only a GPU's launches overlap")
    each = 3
    rope = torch.view_as_real(rope_table(LlamaShape(1, heads, kv_heads, heads * head_dim, 1, 48), device)).flatten(1)
    qkv = torch.randn(9 if picks else 3, (heads + 2 * kv_heads) * head_dim, device=device, dtype=dtype)
    picked = torch.tensor([[0, 8], [0, 3], [0, 8]], device=device)[:, 1] if picks else None  # a column, as of codes
    stores = torch.randn(2, kv_heads, 4 * each, BLOCK_TOKENS, head_dim, device=device, dtype=dtype)
    rows = stores.view(2, kv_heads, 4, each * BLOCK_TOKENS, head_dim)
    rows[:, :, :, position:] = float("nan")  # the position itself and those behind it
    ours, theirs = stores.clone(), stores.clone()
    attended = triton_ops.aligned_attend(qkv, rope, position, each, *ours, heads, overlap, picked)
    alone = qkv if picked is None else qkv[picked]
    wanted = reference.aligned_attend(alone, rope, position, each, *theirs.nan_to_num_(), heads)
    assert error(attended, wanted) < limit(dtype)
    assert error(ours.nan_to_num_(), theirs) < limit(dtype)


# (width, outputs); CSM-1B's own where a GPU has to compute them
SHAPES = [
    (64, 100),
    (300, 33),
    (2048, 20),
    *([(1024, 8192), (2048, 3072), (8192, 1024)] if torch.cuda.is_available() else []),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "outputs"), SHAPES)
@pytest.mark.parametrize("overlap", [False, pytest.param(True, marks=pytest.mark.gpu)])
def test_products_of_one_row(device, dtype, width, outputs, overlap):
    if overlap and device.type == "cpu":
        pytest.skip("only a GPU's launches overlap")
    x = torch.randn(1, width, device=device) * 3
    scale = torch.rand(width, device=device, dtype=dtype)
    weight = torch.randn(2 * outputs, width, device=device, dtype=dtype) * width**-0.5
    normed = triton_ops.norm_linear(x, scale, 1e-5, weight, overlap)
    assert error(normed, reference.norm_linear(x, scale, 1e-5, weight, overlap)) < limit(dtype)
    gated = triton_ops.norm_gated(x, scale, 1e-5, weight, overlap)
    assert error(gated, reference.norm_gated(x, scale, 1e-5, weight, overlap)) < 2 * limit(dtype)
    rows, stream = x.to(dtype), torch.randn(1, 2 * outputs, device=device)
    ours, theirs = stream.clone(), stream.clone()
    triton_ops.linear_add(rows, weight, ours, overlap)
    reference.linear_add(rows, weight, theirs, overlap)
    assert error(ours, theirs) < limit(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("count", "width", "outputs"), [(5, 96, 70), (64, 64, 160), (200, 128, 192), (300, 160, 200)])
def test_gated_product_of_many_rows(device, dtype, count, width, outputs):
    rows = torch.randn(count, width, device=device, dtype=dtype)
    weight = torch.randn(2 * outputs, width, device=device, dtype=dtype) * width**-0.5
    assert error(triton_ops.linear_gated(rows, weight), reference.linear_gated(rows, weight)) < 2 * limit(dtype)


@pytest.mark.parametrize("splits", [1, 2, 3])
@pytest.mark.parametrize(("count", "width", "outputs"), [(64, 256, 96), (70, 320, 64), (200, 128, 40)])
def test_parts_of_a_product(device, count, width, outputs, splits):
    """fp32 sums of bf16: the parts add up to the product, each is its columns' own."""
    rows = torch.randn(count, width, device=device).bfloat16()
    weight = (torch.randn(outputs, width, device=device) * width**-0.5).bfloat16()
    parts = split_matmul.launch_parts(rows, weight, splits, (64, 32, 64), 4, 3, torch.float32)
    columns = 64 * -(-width // splits // 64)
    assert parts.shape == (splits, count, outputs)
    for part, own in enumerate(parts):
        mine = slice(part * columns, (part + 1) * columns)
        wanted = rows[:, mine].float() @ weight[:, mine].float().T
        assert error(own, wanted) < 1e-5 if wanted.any() else not own.any()


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 64, 96, 200, 256, 384, 1000, 1024])
@pytest.mark.parametrize(("width", "outputs"), [(1024, 1024), (8192, 1024), (2048, 2048), (8192, 2048), (1024, 1536)])
@pytest.mark.parametrize("overlap", [False, True])
def test_products_of_csm_1b(count, width, outputs, overlap):
    rows = torch.randn(count, width, device="cuda").bfloat16()
    weight = (torch.randn(outputs, width, device="cuda") * width**-0.5).bfloat16()
    wanted = rows.float() @ weight.float().T
    parts = triton_ops.linear_parts(rows, weight, overlap)
    assert error(parts.sum(0) if parts.ndim == 3 else parts, wanted) < (1e-5 if parts.ndim == 3 else 1e-2)
    assert error(triton_ops.linear(rows, weight, overlap), wanted) < 1e-2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("codebooks", "bins", "width"), [(8, 64, 32), (32, 2048, 1024), (4, 1000, 300)])
def test_sampling(device, dtype, codebooks, bins, width):
    """In bf16 many logits tie, at the k-th too; the draw is the one of sampling.py."""
    count, codebook = 9, codebooks - 1
    logits = (torch.randn(count, bins, device=device) * 2).to(dtype)
    logits[3] = 0.0  # all tie
    logits[4] = -logits[4].abs()
    logits[5, ::2], logits[5, 1::2] = 0.0, -0.0
    temperature = torch.rand(count, device=device) + 0.3
    top_k = torch.tensor([1, 2, 50, 50, 7, 1, 100_000, bins, 5], device=device)
    numbers = [0, 1, 2**64 - 1, 2**63, 2**63 - 1, 2**32, 12345, 7, 8]
    seeds = torch.tensor([number - (number >> 63 << 64) for number in numbers], device=device)
    frames = torch.tensor([0, 1, 2000, 3, 4, 5, 6, 7, 8], device=device)
    embeddings = torch.randn(codebooks, bins + 3, width, device=device, dtype=dtype)
    drawn = []
    for operations in (reference, triton_ops):
        codes = torch.full((count, codebooks), -1, device=device)
        rows = torch.full((count, width), float("nan"), device=device, dtype=dtype)
        operations.sample(logits, temperature, top_k, seeds, frames, codebook, codes, embeddings, rows)
        assert (codes[:, :codebook] == -1).all()
        assert torch.equal(rows, embeddings[codebook, codes[:, codebook]])
        drawn.append(codes[:, codebook].tolist())
        operations.sample(logits, temperature, top_k, seeds, frames, codebook, codes)
        assert codes[:, codebook].tolist() == drawn[-1]
    noise = gumbel(numbers, frames.tolist(), codebooks, bins, device)[:, codebook]
    wanted = sample(logits.float(), temperature.unsqueeze(1), top_k.unsqueeze(1), bins, noise).tolist()
    assert drawn == [wanted, wanted]


PART = GeneratorPart(
    96, 67, 4, LlamaShape(1, 4, 2, 64, 96, 64), LlamaShape(1, 2, 1, 32, 48, 5), (), Path()
)  # fmt: skip
CHOICES = [
    KernelPlan(step_attention=False), KernelPlan(matvec=True), KernelPlan(gated_matmul=True, split_products=True),
    pytest.param(KernelPlan(matvec=True, overlap=True), marks=pytest.mark.gpu),
    pytest.param(KernelPlan(gated_matmul=True, split_products=True, overlap=True), marks=pytest.mark.gpu),
    KernelPlan(gated_matmul=True, deferred_norms=True),
]  # fmt: skip


@pytest.mark.parametrize(
    "plan", CHOICES, ids=["library", "matvec", "many rows", "matvec, overlap", "many rows, overlap", "deferred"]
)
@pytest.mark.parametrize("count", [1, 3])
@torch.inference_mode()
def test_frames_of_kernels(device, plan, count):
    """Two whole frames: the codes and all that the third would start from, as the reference operations give them."""
    if plan.overlap and device.type == "cpu":
        pytest.skip("only a GPU's launches overlap")
    if plan.matvec and count > 1:
        pytest.skip("these products take one row")
    idle = [] if plan.matvec else [count]
    model, seen = init_random(build_model(PART), seed=4).to(device), []
    for operations in (reference, triton_ops):
        state = SlotState(model, count, padding_block=3 * count)
        frame = FrameStep(model, state, blocks=3 * count + 1, max_batch=count + 1, operations=operations)
        state.tables[:count, :3] = torch.arange(3 * count, device=device).view(count, 3).flip(0).int()
        state.next_inputs[:count] = torch.randn(count, 64, generator=torch.Generator().manual_seed(1)).to(device)
        state.seeds[:count] = torch.arange(count, device=device) - 1
        state.top_k[:] = 20
        slots = torch.tensor([*idle, *range(count)], device=device)
        codes = torch.full((len(slots), 4), -1, device=device)
        drawn = []
        for _ in range(2):
            frame.run(slots, codes, 2, plan)
            drawn.append(codes[len(idle) :].clone())
        seen.append((torch.stack(drawn), state, frame.backbone.cache))
    (codes, state, cache), (ours, our_state, our_cache) = seen
    assert torch.equal(ours, codes) and 0 <= int(codes.min()) and int(codes.max()) < 64
    assert our_state.positions.tolist() == [*[2] * count, 0] == our_state.frames.tolist()
    assert error(our_state.next_inputs[:count], state.next_inputs[:count]) < 1e-5
    assert error(our_cache.keys[:, :, :-1], cache.keys[:, :, :-1]) < 1e-4
    assert error(our_cache.values[:, :, :-1], cache.values[:, :, :-1]) < 1e-4
