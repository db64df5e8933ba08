"""The eager runner: plain torch on any device. Owns weights, key-value cache and the next input of each slot.

runner_api.py says what the engine needs of a runner.

Prefill leaves the last prompt token to the first step, so that every frame is the same work: one token
through the backbone, then the depth decoder.

A request's frames do not depend on the batch. Matmuls round differently at other batch sizes (MKL's rows are
independent from four rows on with AVX2, from sixteen with AVX-512), so every step is computed at exactly
`batch_size` rows and every prefill at no fewer than sixteen, padding included; attention goes slot by slot; noise
is counter-based; prompts are cut at multiples of `max_prefill_tokens`, wherever their cached prefix ends. So
sharing a prefix that was prefilled changes no code.

Frames that were generated are the exception in the last bits: a prompt that holds them, or a resumed request,
gets their keys and values from the cache, computed one by one, or from its own prefill, computed many at once.
Codes are the same unless two tokens are closer than that rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from services.backbone.blocks import BLOCK_TOKENS, BlockTable, blocks_for
from services.backbone.cache import PagedCache
from services.backbone.depth_decoder import DepthDecoder
from services.backbone.model import CsmModel, rope_table
from services.backbone.noise import gumbel
from services.backbone.prompt import Prompt
from services.backbone.request import Sampling
from services.backbone.row_step import RowStep, step_attention
from services.backbone.runner_api import Pending
from services.backbone.sampling import sample
from services.backbone.transformer import Transformer, attention

_MIN_PREFILL_ROWS = 16
_MAX_COPIED_BYTES = 256 << 20  # of a model: a larger one's weights are not held twice, whatever is faster
_NOISE_FRAMES = 4
_WARM_UP = Sampling(temperature=1.0, top_k=1, seed=0)


@dataclass
class _Slot:
    prompt: Prompt
    sampling: Sampling
    table: BlockTable
    position: int = 0  # of the next token to compute
    frame: int = 0  # index of the next frame in the utterance
    noise: Tensor = field(default_factory=lambda: torch.empty(0))  # of some frames, [n, K, bins]
    noise_begin: int = 0  # the first of them


class EagerRunner:
    """See runner_api.Runner."""

    frames_ahead = 0

    def __init__(
        self,
        model: CsmModel,
        *,
        slots: int,
        blocks: int | None = None,
        batch_size: int = 4,
        max_prefill_tokens: int = 64,
    ):
        """
        slots: requests that run at once.
        blocks: of the cache; None is enough for all slots.
        batch_size: rows of one step; more slots take several passes.
        max_prefill_tokens: prompt tokens of one call of prefill().
        """
        part = model.part
        weight = model.codebook0_head.weight
        self.slots = slots
        self.max_seq_len = part.backbone.max_seq_len
        self.codec_bins = part.audio_vocab_size - 3
        self.device = weight.device
        self.dtype = weight.dtype
        self._model = model
        self._batch_size = min(batch_size, slots)
        self._max_prefill_tokens = max_prefill_tokens
        copies = self.device.type == "cpu" and sum(each.nbytes for each in model.parameters()) <= _MAX_COPIED_BYTES
        self._backbone = Transformer(model.backbone, part.backbone, rope_table(part.backbone, self.device))
        self._step = RowStep(self._backbone, self._batch_size, copies=copies)
        self._depth = DepthDecoder(model, self._batch_size, copies=copies)
        self.blocks = slots * blocks_for(self.max_seq_len) if blocks is None else blocks
        self._cache = PagedCache(part.backbone, self.blocks, self.device, self.dtype)
        # [slots, D]: the input of each slot's next step
        self._next_inputs = torch.zeros(slots, part.backbone.dim, device=self.device, dtype=self.dtype)
        # [B, H, hd]: attention of a step's rows; padding has whatever an earlier step left there
        head_dim = part.backbone.dim // part.backbone.heads
        self._attended = torch.zeros(
            self._batch_size, part.backbone.heads, head_dim, device=self.device, dtype=self.dtype
        )
        self._slots: dict[int, _Slot] = {}

    def begin(self, slot: int, prompt: Prompt, sampling: Sampling, table: BlockTable) -> None:
        """Put a prompt into a free slot. Frames continue after those the prompt says were generated."""
        if slot in self._slots or not 0 <= slot < self.slots:
            raise ValueError(f"slot {slot} is not free")
        if len(prompt.tokens) > self.max_seq_len:
            raise ValueError(f"prompt of {len(prompt.tokens)} tokens, {self.max_seq_len} fit")
        self._slots[slot] = _Slot(prompt, sampling, table, table.cached_tokens, prompt.generated_frames)

    @torch.inference_mode()
    def prefill(self, slots: Sequence[int]) -> list[int]:
        """Prefill the next piece of the first slot's prompt; several slots at once would be no faster here.

        Returns: the slot, once all but the last token of its prompt is in the cache.
        """
        slot = slots[0]
        state = self._slots[slot]
        last = len(state.prompt.tokens) - 1
        start = state.position
        stop = min((start // self._max_prefill_tokens + 1) * self._max_prefill_tokens, last)
        if start < stop:
            count = stop - start
            rows = torch.arange(start, start + max(count, _MIN_PREFILL_ROWS), device=self.device).clamp(max=stop - 1)
            positions = rows[:count]
            mask = torch.arange(stop, device=self.device) <= rows.unsqueeze(1)  # [n, stop]
            table = self._table(state, stop)
            blocks, offsets = table[positions // BLOCK_TOKENS], positions % BLOCK_TOKENS

            def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                self._cache.write(layer, blocks, offsets, k[:count], v[:count])
                keys, values = self._cache.read(layer, table, stop)
                return attention(q.transpose(0, 1).unsqueeze(0), keys, values, mask)[0].transpose(0, 1)

            self._backbone.forward(self._embed(state.prompt, start, stop)[rows - start], rows, attend)
            state.position = stop
        if stop < last:
            return []
        self._next_inputs[slot] = self._embed(state.prompt, last, last + 1)[0]
        return [slot]

    def prefilled_tokens(self, slot: int) -> int:
        """Tokens at the start of a slot's prompt that are in the cache, or will be before anything launched later."""
        return self._slots[slot].position

    def launch(self, slots: Sequence[int]) -> Pending:
        """A step, run at once."""
        codes = np.array(self.step(slots))
        return lambda: codes

    @torch.inference_mode()
    def step(self, slots: Sequence[int]) -> list[list[int]]:
        """One frame for each slot, in the order given: K codes each, all below the codec's bins."""
        codes: list[list[int]] = []
        for start in range(0, len(slots), self._batch_size):
            codes += self._step_batch(slots[start : start + self._batch_size])
        return codes

    def release(self, slot: int) -> None:
        """The slot is free; its blocks stay valid until they are given to another request."""
        self._slots.pop(slot, None)

    def warm_up(self) -> None:
        """Make one frame in slot 0, so that no request pays for first allocations and file reads."""
        tokens = np.zeros((2, self._model.part.codebooks + 1), dtype=np.int64)
        self.begin(0, Prompt(tokens, np.ones_like(tokens, dtype=bool), 2, 0), _WARM_UP, BlockTable([0]))
        while not self.prefill([0]):
            pass
        self.step([0])
        self.release(0)

    def _step_batch(self, slots: Sequence[int]) -> list[list[int]]:
        count, padding = len(slots), self._batch_size - len(slots)
        states = [self._slots[slot] for slot in slots]
        lengths = [state.position + 1 for state in states]
        if max(lengths) > self.max_seq_len:
            raise ValueError(f"a slot has no position left of {self.max_seq_len}")
        tables = [self._table(state, length) for state, length in zip(states, lengths, strict=True)]
        positions = torch.tensor([*(state.position for state in states), *[0] * padding], device=self.device)
        blocks, offsets = torch.stack([table[-1] for table in tables]), positions[:count] % BLOCK_TOKENS

        def attend(layer: int, q: Tensor, kv: Tensor) -> Tensor:
            self._cache.write(layer, blocks, offsets, *kv[:count].unbind(1))
            for row, (table, length) in enumerate(zip(tables, lengths, strict=True)):
                keys, values = self._cache.read(layer, table, length)
                self._attended[row] = step_attention(q[row : row + 1], keys, values)[0, :, 0]
            return self._attended

        index = torch.tensor(slots, device=self.device)
        self._step.inputs[:count] = self._next_inputs[index]
        self._step.inputs[count:] = 0
        hidden = self._step.run(self._backbone.rope[positions].unsqueeze(1), attend)
        codes = self._draw(hidden, states)
        self._next_inputs[index] = self._model.embed_frames(codes)
        for state in states:
            state.position += 1
            state.frame += 1
        return codes.tolist()

    def _draw(self, hidden: Tensor, states: Sequence[_Slot]) -> Tensor:
        """Decode one frame for the first rows of the batch: [B, D] → [len(states), K]."""
        samplings = [state.sampling for state in states]
        temperature = torch.tensor([[s.temperature] for s in samplings], device=self.device)
        top_k = torch.tensor([[s.top_k] for s in samplings], device=self.device)
        max_top_k = max(s.top_k for s in samplings)
        noise = torch.stack([self._noise(state) for state in states])
        count = len(states)
        codes = torch.zeros(self._model.part.codebooks, self._batch_size, dtype=torch.int64, device=self.device)

        def choose(codebook: int, logits: Tensor) -> Tensor:
            codes[codebook, :count] = sample(logits[:count], temperature, top_k, max_top_k, noise[:, codebook])
            return codes[codebook]

        return self._depth.decode(hidden, choose)[:count]

    def _noise(self, state: _Slot) -> Tensor:
        """The noise of a slot's next frame, [K, bins]."""
        if not 0 <= state.frame - state.noise_begin < len(state.noise):
            # Made for several frames at once, which takes half as long; the first one is not to wait for others.
            count = _NOISE_FRAMES if len(state.noise) else 1
            frames = range(state.frame, state.frame + count)
            codebooks = self._model.part.codebooks
            state.noise = gumbel([state.sampling.seed] * count, frames, codebooks, self.codec_bins, self.device)
            state.noise_begin = state.frame
        return state.noise[state.frame - state.noise_begin]

    def _table(self, state: _Slot, length: int) -> Tensor:
        """The blocks of a slot's first `length` positions: [b] int64."""
        count = blocks_for(length)
        if len(state.table.blocks) < count:
            raise ValueError(f"{length} tokens take {count} blocks, the slot has {len(state.table.blocks)}")
        return torch.tensor(state.table.blocks[:count], device=self.device)

    def _embed(self, prompt: Prompt, start: int, stop: int) -> Tensor:
        tokens = torch.from_numpy(prompt.tokens[start:stop]).to(self.device)
        mask = torch.from_numpy(prompt.mask[start:stop]).to(self.device)
        return self._model.embed_tokens(tokens, mask)
