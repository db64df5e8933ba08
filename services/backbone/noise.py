"""Counter-based noise: the draw for (seed, frame, codebook, token) is a pure function.

Philox 4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC'11),
the generator that `tl.philox` is in Triton, so a kernel can make the same numbers:

    key      (seed mod 2^32, seed div 2^32)
    counter  (token div 4, codebook, frame, 0)
    draw     word number (token mod 4) of the four that come out

All integer steps are exact in int64 on every device. A word x becomes the uniform
u = ((x >> 9) + 1/2) · 2^-23, which fp32 holds exactly and which is never 0 or 1, and then the
Gumbel variate -log(-log u). The logarithms are taken in fp64 and rounded to fp32, so that
devices whose libraries differ in the last bit of a logarithm still agree (a GPU's kernel takes them in fp32:
its logits differ by more).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
# Both multipliers are above 2^31: less 2^32 they keep products inside int64, see philox().
_MULTIPLIERS = (0xD2511F53 - 2**32, 0xCD9E8D57 - 2**32)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def gumbel(seeds: Sequence[int], frames: Sequence[int], codebooks: int, tokens: int, device: torch.device) -> Tensor:
    """Gumbel noise of one frame for each request of a batch.

    seeds: B numbers in [0, 2^64). frames: B frame indexes, counted from the start of the utterance.
    Returns: [B, codebooks, tokens] fp32.
    """
    bits = [seed - (seed >> 63 << 64) for seed in seeds]  # the same 64 bits as a signed number
    return gumbel_of(torch.tensor(bits, device=device), torch.tensor(list(frames), device=device), 0, codebooks, tokens)


def gumbel_of(seeds: Tensor, frames: Tensor, first: int, codebooks: int, tokens: int) -> Tensor:
    """The noise of codebooks `first` and on, from numbers on the device.

    seeds: [B] int64, the bits of a number in [0, 2^64). frames: [B] int64.
    Returns: [B, codebooks, tokens] fp32.
    """
    device = seeds.device
    groups = (tokens + 3) // 4
    shape = (len(seeds), codebooks, groups)
    key = ((seeds & _WORD).view(-1, 1, 1), (seeds >> 32 & _WORD).view(-1, 1, 1))
    counter = (
        torch.arange(groups, device=device).expand(shape),
        torch.arange(first, first + codebooks, device=device).view(-1, 1).expand(shape),
        frames.view(-1, 1, 1).expand(shape),
        torch.zeros((), dtype=torch.int64, device=device).expand(shape),
    )
    words = torch.stack(philox(counter, key), dim=-1).flatten(-2)[..., :tokens]
    uniform = ((words >> 9).double() + 0.5) * 2.0**-23
    return -torch.log(-torch.log(uniform)).float()


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox 4x32-10. Words are int64 tensors in [0, 2^32) that broadcast together; so is the result.

    The 64-bit product of words x and m is had from x · (m - 2^32), which int64 can hold:
    adding x · 2^32 back changes the high word alone.
    """
    device = counter[0].device
    even = torch.stack((counter[0], counter[2]))  # [2, ...] multiplied in every round
    odd = torch.stack((counter[1], counter[3]))
    shape = (2,) + (1,) * (even.ndim - 1)
    multipliers = torch.tensor(_MULTIPLIERS, device=device).view(shape)
    steps = torch.tensor(_KEY_STEPS, device=device).view(shape)
    keys = torch.stack(torch.broadcast_tensors(*key))
    for turn in range(_ROUNDS):
        product = even * multipliers
        high, low = (product >> 32) + even, product & _WORD
        even = high.flip(0) ^ odd ^ ((keys + turn * steps) & _WORD)
        odd = low.flip(0)
    return even[0], odd[0], even[1], odd[1]
