"""One frame for a batch of slots, from tables on the device to tables on the device.

Backbone step, K - 1 depth steps, K draws, the next step's input, positions and counters: nothing here
reads a value back to the host, so all of it can be one CUDA graph. What differs from frame to frame is
in the tensors of `SlotState`; a slot joins or leaves by a change to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from services.backbone.blocks import blocks_for
from services.backbone.fused_llama import FusedLlama, KernelPlan, Rows
from services.backbone.kernels.persistent import DepthKernel, DepthWeights
from services.backbone.model import CsmModel, rope_table
from services.backbone.transformer import Transformer


class SlotState:
    """The next step's inputs of every slot. Index `slots`, one past the last, is the padding slot of a batch."""

    def __init__(self, model: CsmModel, slots: int, padding_block: int):
        """padding_block: a block that the padding slot may write to."""
        weight = model.codebook0_head.weight
        backbone, device = model.part.backbone, weight.device
        self.slots = slots
        self.tables = torch.zeros(slots + 1, blocks_for(backbone.max_seq_len), dtype=torch.int32, device=device)
        self.tables[slots] = padding_block
        self.next_inputs = torch.zeros(slots + 1, backbone.dim, dtype=torch.float32, device=device)
        # One tensor, so that one launch reads or writes them all: positions of the next input, indexes of the next frame.
        self.numbers = torch.zeros(4, slots + 1, dtype=torch.int64, device=device)
        self.positions, self.frames, self.seeds, self.top_k = self.numbers
        self.top_k.fill_(1)
        self.temperature = torch.ones(slots + 1, dtype=torch.float32, device=device)


class FrameStep:
    """Computes frames. Owns both caches, and the weights in the layout that its kernels read."""

    def __init__(self, model: CsmModel, state: SlotState, *, blocks: int, max_batch: int, operations: ModuleType):
        """blocks: of the backbone's cache. max_batch: slots of the largest batch."""
        part, weight = model.part, model.codebook0_head.weight
        device = weight.device
        self.state = state
        self.codebooks = part.codebooks
        self._ops = operations
        self.backbone = FusedLlama(
            Transformer(model.backbone, part.backbone, rope_table(part.backbone, device)), blocks, operations
        )
        self._blocks_per_slot = blocks_for(part.codebooks + 1)
        depth_blocks = max_batch * self._blocks_per_slot
        self._depth = FusedLlama(
            Transformer(model.decoder, part.decoder, rope_table(part.decoder, device)), depth_blocks, operations
        )
        bins = part.audio_vocab_size - 3  # values that no codec knows get no logit
        self._projection = model.projection.weight
        self._heads = [weight[:bins], *model.audio_head[:, :, :bins].transpose(1, 2).contiguous()]  # [bins, d] each
        embeddings = model.audio_embeddings.weight
        self._embeddings = embeddings.view(part.codebooks, part.audio_vocab_size, -1)
        # The depth decoder's inputs: every code's embedding, projected here once instead of in every step.
        self._projected = F.linear(embeddings, self._projection).view(part.codebooks, part.audio_vocab_size, -1)
        # So the first layer's qkv of every step but the first is known too: [K, V, (H + 2 KV) hd], 0.2 GB for CSM-1B.
        self._first_qkv = torch.stack([self._depth.first_qkv(inputs) for inputs in self._projected])
        self._depth_weights: DepthWeights | None = None
        self._depth_kernels: dict[int, DepthKernel] = {}  # of each batch size

    def run(self, slots: Tensor, codes: Tensor, splits: int, plan: KernelPlan) -> None:
        """The next frame of each slot.

        slots: [B] int64, padding is `state.slots`. codes: [B, K] int64, written.
        splits: parts that the backbone's attention splits the context into.
        """
        state = self.state
        numbers = state.numbers.index_select(1, slots)  # [4, B]
        positions, frames, seeds, top_k = numbers
        attend = self.backbone.paged_attention(slots, positions, state.tables, splits, plan)
        hidden = self.backbone.forward(state.next_inputs[slots], attend, plan)
        if plan.persistent_depth:
            tables = (state.temperature, state.top_k, state.seeds, state.frames)
            self._depth_kernel(len(slots)).decode(self.backbone.normed(hidden, plan), slots, *tables, codes)
        else:
            self._decode(hidden, (state.temperature[slots], top_k, seeds, frames), codes, plan)
        state.next_inputs.index_copy_(0, slots, self._ops.embed_frames(codes, self._embeddings))
        state.numbers[:2].index_copy_(1, slots, numbers[:2] + 1)
        state.numbers[:2, state.slots] = 0  # padding stays at the start

    def compile(self, plans: Mapping[int, KernelPlan]) -> None:
        """Compile, side by side, what takes long, for batch sizes and their plans. Raises: CompileError."""
        persistent = [size for size, plan in plans.items() if plan.persistent_depth]
        if persistent:
            self._packed_depth().compile(persistent)
        deferring = [size for size, plan in plans.items() if plan.deferred_norms]
        if deferring:
            self.backbone.compile(deferring, [self._projection, self._heads[0]])
            self._depth.compile({*deferring, *(2 * size for size in deferring)}, self._heads[1:2])

    def _packed_depth(self) -> DepthWeights:
        if self._depth_weights is None:
            tables = self._projected, self._first_qkv
            self._depth_weights = self._depth.packed_for_depth(self._projection, self._heads, *tables)
        return self._depth_weights

    def _depth_kernel(self, batch: int) -> DepthKernel:
        """Compiled at its first use, if it was not before. Raises: CompileError."""
        if batch not in self._depth_kernels:
            self._depth_kernels[batch] = DepthKernel(self._packed_depth(), batch)
        return self._depth_kernels[batch]

    def _decode(self, hidden: Rows, sampling: tuple[Tensor, ...], codes: Tensor, plan: KernelPlan) -> None:
        """The depth decoder (depth_decoder.py explains it): backbone outputs [B, D] → codes [B, K]."""
        batch, depth, device = len(codes), self._depth, codes.device
        inputs = torch.empty(2 * batch, self._projection.shape[0], device=device, dtype=torch.float32)
        # A launch without overlap (a copy would not do: overlapping launches cannot follow one). After it all earlier
        # work is over, which overlapping kernels rely on for what they read before they wait.
        torch.add(self.backbone.head(hidden, self._projection, plan), 0.0, out=inputs[:batch])

        def draw(logits: Tensor, codebook: int, next_inputs: Tensor) -> None:
            self._ops.sample(logits, *sampling, codebook, codes, self._projected, next_inputs, plan.overlap)

        draw(self.backbone.head(hidden, self._heads[0], plan), 0, inputs[batch:])
        first_plan = KernelPlan() if plan.matvec else plan  # two rows a slot, too many for `matvec`
        attend = depth.first_attention(self._blocks_per_slot, first_plan)
        out, out_plan = depth.forward(inputs, attend, first_plan, last=batch), first_plan
        for codebook in range(1, self.codebooks):
            inputs = torch.empty(batch, inputs.shape[1], device=device, dtype=torch.float32)
            draw(depth.head(out, self._heads[codebook], out_plan), codebook, inputs)
            out_plan = plan
            if codebook + 1 < self.codebooks:
                attend = depth.aligned_attention(codebook + 1, self._blocks_per_slot, plan)
                out = depth.forward(inputs, attend, plan, (self._first_qkv[codebook], codes[:, codebook]))
