"""One frame of a batch of slots, from tables on the device to tables on the device.

Backbone step, K - 1 depth steps, K draws, the row that the next frame reads, positions and counters:
nothing here asks the device for a value, so all of it can be one CUDA graph. What differs from frame
to frame lies in the tensors of `State`; a slot joins or leaves by a change to them.
"""

from __future__ import annotations

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from services.backbone.blocks import blocks_for
from services.backbone.model import CsmModel, rope_table
from services.backbone.stack import Launches, Stack
from services.backbone.transformer import Transformer


class State:
    """What every slot is about to do. Row `slots`, one past the last, stands for idle rows of a batch."""

    def __init__(self, model: CsmModel, slots: int, idle_block: int):
        """idle_block: a block that idle rows may write to."""
        weight = model.codebook0_head.weight
        backbone, device = model.part.backbone, weight.device
        self.slots = slots
        self.tables = torch.zeros(slots + 1, blocks_for(backbone.max_rows), dtype=torch.int32, device=device)
        self.tables[slots] = idle_block
        self.next_rows = torch.zeros(slots + 1, backbone.dim, dtype=torch.float32, device=device)
        self.positions = torch.zeros(slots + 1, dtype=torch.int64, device=device)  # where the next row goes
        self.frames = torch.zeros(slots + 1, dtype=torch.int64, device=device)  # index of the next frame
        self.seeds = torch.zeros(slots + 1, dtype=torch.int64, device=device)
        self.top_k = torch.ones(slots + 1, dtype=torch.int64, device=device)
        self.temperature = torch.ones(slots + 1, dtype=torch.float32, device=device)


class Frame:
    """The work itself. Owns both caches and the weights in the form that frames want them."""

    def __init__(self, model: CsmModel, state: State, *, blocks: int, most: int, operations: ModuleType):
        """blocks: of the backbone's cache. most: slots of the largest batch."""
        part, weight = model.part, model.codebook0_head.weight
        device = weight.device
        self.state = state
        self.codebooks = part.codebooks
        self._do = operations
        self.backbone = Stack(
            Transformer(model.backbone, part.backbone, rope_table(part.backbone, device)), blocks, operations
        )
        each = blocks_for(part.codebooks + 1)
        self._depth = Stack(
            Transformer(model.decoder, part.decoder, rope_table(part.decoder, device)), most * each, operations
        )
        self._depth_tables = torch.arange(most * each, device=device, dtype=torch.int32).view(most, each)
        self._batch, self._zeros, self._ones = (
            torch.arange(most, device=device), *torch.tensor([[0], [1]], device=device).repeat(1, most)
        )  # fmt: skip
        bins = part.audio_vocab_size - 3  # values that no codec knows get no logit
        self._projection = model.projection.weight
        self._heads = [weight[:bins], *model.audio_head[:, :, :bins].transpose(1, 2).contiguous()]  # [bins, d] each
        embeddings = model.audio_embeddings.weight
        self._embeddings = embeddings.view(part.codebooks, part.audio_vocab_size, -1)
        # What the depth decoder reads after a code: projected once here, not in every step.
        self._projected = F.linear(embeddings, self._projection).view(part.codebooks, part.audio_vocab_size, -1)

    def pack(self) -> None:
        """Have the layers' weights in eight bits too; the heads stay as they are."""
        self.backbone.pack()
        self._depth.pack()

    def make(self, slots: Tensor, codes: Tensor, splits: int, launches: Launches) -> None:
        """The next frame of each slot.

        slots: [B] int64, idle rows are `state.slots`. codes: [B, K] int64, written.
        splits: parts that the backbone's attention cuts the context into.
        """
        state = self.state
        positions, frames = state.positions[slots], state.frames[slots]
        draw_from = (state.temperature[slots], state.top_k[slots], state.seeds[slots], frames)
        attend = self.backbone.paged(slots, positions, state.tables, splits, launches)
        hidden = self.backbone.forward(state.next_rows[slots], attend, launches)
        self._decode(hidden, draw_from, codes, launches)
        is_live = slots < state.slots
        state.next_rows.index_copy_(0, slots, self._do.embed_frames(codes, self._embeddings))
        state.positions.index_copy_(0, slots, (positions + 1) * is_live)
        state.frames.index_copy_(0, slots, (frames + 1) * is_live)

    def _decode(self, hidden: Tensor, draw_from: tuple[Tensor, ...], codes: Tensor, launches: Launches) -> None:
        """Depth decoder: the backbone's rows [B, D] → codes [B, K]. depth.py tells how it goes."""
        batch, depth = len(hidden), self._depth
        rows = torch.empty(2 * batch, self._projection.shape[0], device=hidden.device, dtype=torch.float32)
        # A launch that does not overlap (and no copy, which the ones that do could not follow): with it all
        # that came before is over, on which they rely for what they read before they wait.
        torch.add(self.backbone.head(hidden, self._projection, launches), 0.0, out=rows[:batch])

        def draw(logits: Tensor, codebook: int, to: Tensor) -> None:
            self._do.sample(logits, *draw_from, codebook, codes, self._projected, to, launches.overlap)

        draw(self.backbone.head(hidden, self._heads[0], launches), 0, rows[batch:])
        # Two rows of each slot, which is too many for `products`; the second must find what the first has written.
        first = Launches(gated=launches.gated)
        positions = torch.cat([self._zeros[:batch], self._ones[:batch]])
        attend = depth.paged(self._batch[:batch].repeat(2), positions, self._depth_tables)
        out, made_of = depth.forward(rows, attend, first)[batch:], first
        for codebook in range(1, self.codebooks):
            rows = torch.empty(batch, rows.shape[1], device=hidden.device, dtype=torch.float32)
            draw(depth.head(out, self._heads[codebook], made_of), codebook, rows)
            made_of = launches
            if codebook + 1 < self.codebooks:
                attend = depth.aligned(codebook + 1, self._depth_tables.shape[1], launches)
                out = depth.forward(rows, attend, launches)
