"""Choose codes from logits: top-k, temperature, and the maximum of score plus Gumbel noise.

argmax(logits / temperature + Gumbel) is a draw from softmax(logits / temperature) (Gumbel, 1954;
"Gumbel-max"), so the draw is a pure function of logits and noise: no generator has state.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sample(logits: Tensor, temperature: Tensor, top_k: Tensor, max_top_k: int, noise: Tensor) -> Tensor:
    """One code for each row.

    logits: [B, V] fp32; only the first tokens that `noise` covers can be chosen, which is how
        the values that no codec knows are left out.
    temperature: [B, 1] fp32, above 0. top_k: [B, 1] int64, at least 1; tokens that tie with the
        k-th are kept, and 1 means the first maximum, without noise.
    max_top_k: the greatest of top_k, known to the host.
    noise: [B, bins] fp32, bins <= V.
    Returns: [B] int64 in [0, bins).
    """
    bins = noise.shape[1]
    logits = logits[:, :bins]
    best = logits.topk(min(max_top_k, bins), dim=-1).values
    threshold = best.gather(1, top_k.clamp(max=bins) - 1)
    scores = torch.where(top_k == 1, logits, logits / temperature + noise)
    return scores.masked_fill(logits < threshold, float("-inf")).argmax(dim=-1)
