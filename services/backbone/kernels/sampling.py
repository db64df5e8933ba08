"""Top-k sampling with counter noise in one kernel. reference.py says what it computes. CSM-1B's in bf16 is row_kernels.draw.

In the Triton kernel the k-th largest logit is found by bisection over the bits of a float, which sort as integers do (of
bf16 the upper half is enough), two bits a round. The search ends when exactly k logits are at or above
the threshold or, with ties at the k-th, at the k-th's own value. Then argmax(logit / temperature + Gumbel),
see sampling.py; the noise is noise.py's, from the same counters and generator.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from services.backbone.kernels import row_kernels


@triton.jit
def _gumbel(seed, frame, codebook, BINS: tl.constexpr):
    """Noise of BINS tokens, a power of two from 4 on: four words from each counter.

    The uniform numbers are exact in fp32, their logarithms accurate to a bit or two: noise.py takes them in
    fp64, which would be most of a draw's time at large batches.
    """
    group = tl.arange(0, BINS // 4)
    zero = group * 0
    w0, w1, w2, w3 = tl.philox(
        seed, group.to(tl.uint32), (zero + codebook).to(tl.uint32), (zero + frame).to(tl.uint32), zero.to(tl.uint32)
    )
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (BINS,))
    uniform = ((words >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2^-23
    return -tl.log(-tl.log(uniform))


@triton.jit(do_not_specialize=["codebook"])  # otherwise codebooks 0, 1 and 16 would be compiled variants
def _sample(
    logits, temperatures, top_ks, seeds, frames, codes, embeddings, rows,
    codebook, bins, codebooks, vocab, width, HAS_ROWS: tl.constexpr, BINS: tl.constexpr, WIDTH: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BINS)
    # Seeds and counters were written long before the previous kernel, which writes the logits.
    noise = _gumbel(tl.load(seeds + row), tl.load(frames + row), codebook, BINS)
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    inside = token < bins
    # + 0 makes -0 and 0 one number
    values = tl.load(logits + row * bins + token, mask=inside, other=float("-inf")).to(tl.float32) + 0.0
    bits = values.to(tl.int32, bitcast=True)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # rises as the values do
    if logits.dtype.element_ty == tl.bfloat16:
        order = order >> 16  # the rest is all zeros, or all ones below 0
    order = tl.where(inside, order, -0x80000000)  # below any number
    top_k = tl.minimum(tl.load(top_ks + row), bins).to(tl.int32)
    # At least top_k logits are at or above low, fewer at or above high; 64 bits, as their difference needs them.
    low = tl.min(tl.where(inside, order, 0x7FFFFFFF), axis=0).to(tl.int64)
    high = tl.max(order, axis=0).to(tl.int64) + 1
    count = bins.to(tl.int32)  # below 2^20
    while (high - low > 1) & (count != top_k):
        # Three thresholds a round: a round's sums cost one reduction over all warps, and this halves the rounds.
        half = low + (high - low) // 2
        first, third = low + (high - low) // 4, half + (high - half) // 2
        above = (order >= first.to(tl.int32)).to(tl.int64) + ((order >= half.to(tl.int32)).to(tl.int64) << 20)
        above = tl.sum(above + ((order >= third.to(tl.int32)).to(tl.int64) << 40), axis=0)
        above1, above2, above3 = above & 0xFFFFF, (above >> 20) & 0xFFFFF, above >> 40
        if above3 >= top_k:
            low, count = third, above3.to(tl.int32)
        elif above2 >= top_k:
            low, high, count = half, third, above2.to(tl.int32)
        elif above1 >= top_k:
            low, high, count = first, half, above1.to(tl.int32)
        else:
            high = first
    scores = tl.div_rn(values, tl.load(temperatures + row)) + noise
    scores = tl.where(top_k == 1, values, scores)
    code = tl.argmax(tl.where(inside & (order >= low.to(tl.int32)), scores, float("-inf")), axis=0)
    tl.store(codes + row * codebooks + codebook, code.to(tl.int64))
    if HAS_ROWS:
        column = tl.arange(0, WIDTH)
        at = (codebook * vocab + code).to(tl.int64) * width + column
        embedding = tl.load(embeddings + at, mask=column < width)
        tl.store(rows + row * width + column, embedding.to(rows.dtype.element_ty), mask=column < width)


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    seeds: Tensor,
    frames: Tensor,
    codebook: int,
    codes: Tensor,
    embeddings: Tensor | None = None,
    rows: Tensor | None = None,
    overlap: bool = False,
) -> None:
    is_single = overlap and len(logits) == 1  # the Triton kernel makes its noise while the product ahead ends
    if not is_single and row_kernels.can_draw(logits, embeddings, rows):
        row_kernels.draw(logits, temperature, top_k, seeds, frames, codebook, codes, embeddings, rows, overlap)
        return
    count, bins = logits.shape
    has_rows = embeddings is not None and rows is not None
    vocab, width = embeddings.shape[1:] if embeddings is not None else (0, 1)
    _sample[(count,)](
        logits, temperature, top_k, seeds, frames, codes, embeddings if has_rows else logits, rows if has_rows else logits,
        codebook, bins, codes.shape[1], vocab, width,
        HAS_ROWS=has_rows, BINS=max(4, triton.next_power_of_2(bins)), WIDTH=triton.next_power_of_2(width),
        OVERLAP=overlap, num_warps=8, launch_pdl=overlap,
    )  # fmt: skip
