"""The eager runner: plain torch on any device. Owns weights, key-value cache and what each slot reads next.

runner_api.py says what the engine asks of a runner.

Prefill leaves the last prompt row to the first step, so every frame of every slot is the same
work: one row through the backbone, then the depth decoder.

A request's frames do not depend on who shares its step. Matmuls of another batch size may round
otherwise (a CPU's one-row product does), so every step is computed at exactly `block_rows` rows,
idle ones included; attention goes slot by slot over that slot's own rows; noise is counter-based;
prompts are cut at multiples of `prefill_rows`, whoever else is there. Whole pieces of that length may
be shared between requests (BlockPool's `share_rows`) and no bit changes: each request would have cut
and computed them just so.

A resumed request is the one exception in the last bits: prefill reads, many rows at once, frames
that were first read one by one. Its noise is the same, and so are its codes unless two tokens are
closer than that rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.backbone.blocks import BLOCK_ROWS, Table, blocks_for
from services.backbone.cache import PagedCache
from services.backbone.depth import DepthDecoder
from services.backbone.model import CsmModel, rope_table
from services.backbone.noise import gumbel
from services.backbone.prompt import Prompt
from services.backbone.runner_api import Pending
from services.backbone.sampling import sample
from services.backbone.scheduler import Sampling
from services.backbone.transformer import Transformer, attention

_IDLE = Sampling(temperature=1.0, top_k=1, seed=0)


@dataclass
class _Slot:
    prompt: Prompt
    sampling: Sampling
    table: Table
    position: int = 0  # row the next forward pass starts at
    frame: int = 0  # index of the next frame in the utterance


class Runner:
    """See runner_api.Runner."""

    frames_ahead = 0

    def __init__(
        self, model: CsmModel, *, slots: int, blocks: int | None = None, block_rows: int = 4, prefill_rows: int = 64
    ):
        """
        blocks: of the cache; None is as many as all slots can fill.
        slots: requests that can be under way at once.
        block_rows: rows of one batched step; more active slots than that take several blocks.
        prefill_rows: most prompt rows that one call of prefill() reads.
        """
        part = model.part
        weight = model.codebook0_head.weight
        self.slots = slots
        self.max_rows = part.backbone.max_rows
        self.codec_bins = part.audio_vocab_size - 3
        self.device = weight.device
        self.dtype = weight.dtype
        self._model = model
        self._block_rows = min(block_rows, slots)
        self._prefill_rows = prefill_rows
        self.share_rows = prefill_rows  # what prompts may share is a multiple of this many rows
        self._backbone = Transformer(model.backbone, part.backbone, rope_table(part.backbone, self.device))
        self._depth = DepthDecoder(model, self._block_rows)
        self.blocks = slots * blocks_for(self.max_rows) if blocks is None else blocks
        self._cache = PagedCache(part.backbone, self.blocks, self.device, self.dtype)
        # [slots + 1, D]: the row each slot's next step reads; the last stands for idle rows
        self._next_rows = torch.zeros(slots + 1, part.backbone.dim, device=self.device, dtype=self.dtype)
        self._held: dict[int, _Slot] = {}

    def begin(self, slot: int, prompt: Prompt, sampling: Sampling, table: Table) -> None:
        """Put a prompt into a free slot. Frames continue after those the prompt says were generated."""
        if slot in self._held or not 0 <= slot < self.slots:
            raise ValueError(f"slot {slot} is not free")
        if len(prompt.rows) > self.max_rows:
            raise ValueError(f"prompt of {len(prompt.rows)} rows, {self.max_rows} fit")
        if table.cached_rows % self._prefill_rows:
            raise ValueError(f"{table.cached_rows} shared rows are not a multiple of {self._prefill_rows}")
        self._held[slot] = _Slot(prompt, sampling, table, table.cached_rows, prompt.generated_frames)

    @torch.inference_mode()
    def prefill(self, slots: Sequence[int]) -> list[int]:
        """Read the next piece of the first slot's prompt: here, several at once would be no faster.

        Returns: the slot, once all but the last row of its prompt is in the cache.
        """
        slot = slots[0]
        held = self._held[slot]
        last = len(held.prompt.rows) - 1
        start, stop = held.position, min(held.position + self._prefill_rows, last)
        if start < stop:
            positions = torch.arange(start, stop, device=self.device)
            mask = torch.arange(stop, device=self.device) <= positions.unsqueeze(1)  # [n, stop]
            table = self._table(held, stop)
            blocks, rows = table[positions // BLOCK_ROWS], positions % BLOCK_ROWS

            def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                self._cache.write(layer, blocks, rows, k, v)
                keys, values = self._cache.read(layer, table, stop)
                return attention(q.transpose(0, 1).unsqueeze(0), keys, values, mask)[0].transpose(0, 1)

            self._backbone.forward(self._embed(held.prompt, start, stop), positions, attend)
            held.position = stop
        if stop < last:
            return []
        self._next_rows[slot] = self._embed(held.prompt, last, last + 1)[0]
        return [slot]

    def launch(self, slots: Sequence[int]) -> Pending:
        """A step, made at once."""
        codes = self.step(slots)
        return lambda: codes

    @torch.inference_mode()
    def step(self, slots: Sequence[int]) -> list[list[int]]:
        """One frame for each slot, in the order given: K codes each, all below the codec's bins."""
        codes: list[list[int]] = []
        for start in range(0, len(slots), self._block_rows):
            codes += self._step_block(slots[start : start + self._block_rows])
        return codes

    def release(self, slot: int) -> None:
        """The slot is free; its rows stay in the cache until their blocks are someone else's."""
        self._held.pop(slot, None)

    def warm_up(self) -> None:
        """Make one frame in slot 0, so that no caller pays for first allocations and file reads."""
        rows = np.zeros((2, self._model.part.codebooks + 1), dtype=np.int64)
        self.begin(0, Prompt(rows, np.ones_like(rows, dtype=bool), 2, 0), _IDLE, Table([0]))
        while not self.prefill([0]):
            pass
        self.step([0])
        self.release(0)

    def _step_block(self, slots: Sequence[int]) -> list[list[int]]:
        count, idle = len(slots), self._block_rows - len(slots)
        held = [self._held[slot] for slot in slots]
        lengths = [state.position + 1 for state in held]
        if max(lengths) > self.max_rows:
            raise ValueError(f"a slot has no row left of {self.max_rows}")
        index = torch.tensor([*slots, *[self.slots] * idle], device=self.device)
        positions = torch.tensor([*(state.position for state in held), *[0] * idle], device=self.device)
        active = index[:count]
        tables = [self._table(state, length) for state, length in zip(held, lengths, strict=True)]
        blocks, rows = torch.stack([table[-1] for table in tables]), positions[:count] % BLOCK_ROWS

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self._cache.write(layer, blocks, rows, k[:count], v[:count])
            out = torch.zeros_like(q)
            for row, (table, length) in enumerate(zip(tables, lengths, strict=True)):
                keys, values = self._cache.read(layer, table, length)
                out[row] = attention(q[row].unsqueeze(0).unsqueeze(2), keys, values)[0, :, 0]
            return out

        hidden = self._backbone.forward(self._next_rows[index], positions, attend)
        codes = self._draw(hidden, held, idle)
        self._next_rows[active] = self._model.embed_frames(codes)[:count]
        for state in held:
            state.position += 1
            state.frame += 1
        return codes[:count].tolist()

    def _draw(self, hidden: Tensor, held: Sequence[_Slot], idle: int) -> Tensor:
        """Decode one frame for every row of the block: [B, D] → [B, K]."""
        samplings = [*(state.sampling for state in held), *[_IDLE] * idle]
        temperature = torch.tensor([[s.temperature] for s in samplings], device=self.device)
        top_k = torch.tensor([[s.top_k] for s in samplings], device=self.device)
        max_top_k = max(s.top_k for s in samplings)
        noise = gumbel(
            [s.seed for s in samplings],
            [*(state.frame for state in held), *[0] * idle],
            self._model.part.codebooks,
            self.codec_bins,
            self.device,
        )
        return self._depth.decode(
            hidden, lambda codebook, logits: sample(logits, temperature, top_k, max_top_k, noise[:, codebook])
        )

    def _table(self, held: _Slot, rows: int) -> Tensor:
        """The blocks of a slot's first rows: [b] int64."""
        count = blocks_for(rows)
        if len(held.table.blocks) < count:
            raise ValueError(f"{rows} rows take {count} blocks, the slot has {len(held.table.blocks)}")
        return torch.tensor(held.table.blocks[:count], device=self.device)

    def _embed(self, prompt: Prompt, start: int, stop: int) -> Tensor:
        rows = torch.from_numpy(prompt.rows[start:stop]).to(self.device)
        mask = torch.from_numpy(prompt.mask[start:stop]).to(self.device)
        return self._model.embed_rows(rows, mask)
