"""The runner for CUDA devices: a whole frame is one captured graph, and the host stays a step ahead.

Satisfies runner_api.Runner. There is a graph for each size in `batch_buckets`; a batch takes the smallest
that holds it and is padded. A graph reads which slots it serves, and their state, from tables on the device
(frame_step.SlotState); between two frames only changes to them are uploaded. All work is on one stream, so a
slot's next request comes after its last frame without a wait. Codes come back through pinned memory; only
reading them waits for the device.

Prefill packs the prompts of several slots into one pass of at most `max_prefill_tokens` between two frames,
captured too, for a few sizes, and padded. Rows are computed together with the rest of their pass or batch, so
results may differ in the last bits with the batch; a request's noise does not.

On a CPU device the same code runs without capture and with the reference operations, for tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from models.bundle import LlamaShape
from services.backbone.blocks import BLOCK_TOKENS, BlockTable, blocks_for
from services.backbone.cache import block_bytes
from services.backbone.frame_step import FrameStep, SlotState
from services.backbone.fused_llama import KernelPlan
from services.backbone.kernels import operations_for
from services.backbone.kernels.persistent import MAX_BATCH
from services.backbone.model import CsmModel
from services.backbone.prompt import Prompt
from services.backbone.request import Sampling
from services.backbone.runner_api import Pending
from services.backbone.staging import Staging
from services.backbone.step_upload import Entry, StepUpload
from services.engine.graphs import GraphRecorder, on_device

# Beyond 256 in steps of one tile of the products: a padding row costs as much as a stream's, so one step from 1,024 to
# all slots made 1,250 streams of 1,536 or 2,048 slots take the time of all slots.
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, *range(384, 4097, 128))
_MAX_SPLITS = 16
_DEFERS_UP_TO = 1024  # rows
_MEMORY_SHARE = (
    0.85  # of the memory that is free once the weights are loaded; graphs, prefill and the depth cache take the rest
)


def kernel_plan_for(
    batch: int, persistent_depth: bool = False, overlap: bool = True, defers: bool = True
) -> KernelPlan:
    """The fastest kernels for a batch size, by tests/bench/bench_variants.py.

    persistent_depth: whether kernels/persistent.py may be used. overlap, defers: kernels.can_overlap and
    kernels.can_defer_norms of the device; without overlap the plan has what any GPU can run.
    """
    if not overlap:
        return KernelPlan(matvec=batch == 1)
    is_persistent = persistent_depth and batch <= MAX_BATCH
    if batch == 1:
        return KernelPlan(matvec=True, overlap=True, persistent_depth=is_persistent)
    if is_persistent:
        return KernelPlan(persistent_depth=True)
    if defers and batch <= _DEFERS_UP_TO:
        return KernelPlan(gated_matmul=True, split_products=batch <= 512, deferred_norms=True, overlap=True)
    overlaps = batch <= 512
    return KernelPlan(gated_matmul=True, split_products=overlaps, overlap=overlaps)


@dataclass
class _Slot:
    prompt: Prompt
    sampling: Sampling
    table: BlockTable
    position: int  # prompt tokens in the cache
    uploaded_blocks: int = 0  # blocks of the table that are on the device


class GraphRunner:
    """See runner_api.Runner."""

    frames_ahead = 1

    def __init__(
        self,
        model: CsmModel,
        *,
        slots: int,
        blocks: int | None = None,
        max_prefill_tokens: int = 512,
        batch_buckets: Sequence[int] = _BATCH_BUCKETS,
        kernel_plan: Callable[[int], KernelPlan] = kernel_plan_for,
    ):
        """
        slots: requests that can be under way at once.
        blocks: of the cache; None is enough for all slots, as far as free memory goes.
        max_prefill_tokens: prompt tokens of one call of prefill(), of all slots together.
        batch_buckets: batch sizes to capture graphs for; `slots` itself is always one.
        kernel_plan: which kernels a batch size uses.
        """
        part, weight = model.part, model.codebook0_head.weight
        self.slots = slots
        self.max_seq_len = part.backbone.max_seq_len
        self.device, self.dtype = weight.device, weight.dtype
        self._is_cuda = self.device.type == "cuda"
        self.blocks = self._blocks_that_fit(part.backbone) if blocks is None else blocks
        self._model = model
        self._max_prefill_tokens = max_prefill_tokens
        self._kernel_plan = kernel_plan
        self._batch_buckets = sorted({size for size in batch_buckets if size < slots} | {slots})
        with torch.no_grad(), on_device(self.device):
            self._state = SlotState(model, slots, padding_block=self.blocks)
            self._frame = FrameStep(
                model, self._state, blocks=self.blocks + 1, max_batch=slots, operations=operations_for(self.device)
            )
            self._step, self._staging = StepUpload(self._state), Staging(self.device)
            self._codes = torch.zeros(slots, part.codebooks, dtype=torch.int64, device=self.device)
            self._prefill_inputs = torch.zeros(max_prefill_tokens, part.backbone.dim, device=self.device)
            self._prefill_at = torch.zeros(
                2, max_prefill_tokens, dtype=torch.int64, device=self.device
            )  # slots, positions
        self._prefill_buckets = sorted(
            {max_prefill_tokens, *(1 << bit for bit in range(5, max_prefill_tokens.bit_length()))} - {0}
        )
        # One for the step that is being read, one for the step after it.
        self._readbacks = [_Readback(self._codes, self._batch_buckets) for _ in "ab"]
        self._graphs: dict[int, Callable[[], None]] = {}  # what replays each
        self._prefill_graphs: dict[int, Callable[[], None]] = {}
        self._slots: dict[int, _Slot] = {}
        self._step_index = 0

    def begin(self, slot: int, prompt: Prompt, sampling: Sampling, table: BlockTable) -> None:
        """Put a prompt into a free slot. Frames continue after those the prompt says were generated."""
        if slot in self._slots or not 0 <= slot < self.slots:
            raise ValueError(f"slot {slot} is not free")
        if len(prompt.tokens) > self.max_seq_len:
            raise ValueError(f"prompt of {len(prompt.tokens)} tokens, {self.max_seq_len} fit")
        self._slots[slot] = _Slot(prompt, sampling, table, table.cached_tokens)

    def release(self, slot: int) -> None:
        """The slot is free; a step in flight may still write to it, before anything of its next request."""
        self._slots.pop(slot, None)

    @torch.inference_mode()
    def prefill(self, slots: Sequence[int]) -> list[int]:
        """Prefill up to `max_prefill_tokens` of these slots' prompts in one pass. Returns: slots that can step now."""
        left, pieces, ready = self._max_prefill_tokens, [], []
        for slot in slots:
            held = self._slots[slot]
            last = len(held.prompt.tokens) - 1  # left to the first step
            start, stop = held.position, min(held.position + left, last)
            if start < stop:
                pieces.append((slot, start, stop))
                left -= stop - start
                held.position = stop
            if stop == last:
                ready.append(slot)
            if not left:
                break
        with on_device(self.device):
            self._write_tables(self._grown(dict.fromkeys([*(slot for slot, _, _ in pieces), *ready])))
            if pieces:
                self._prefill_pass(pieces)
            if ready:
                self._upload_state(ready)
        return ready

    def _prefill_pass(self, pieces: Sequence[tuple[int, int, int]]) -> None:
        """One pass over parts of prompts, (slot, start, stop) each, padded with position 0 of the padding slot."""
        at = [(slot, position) for slot, start, stop in pieces for position in range(start, stop)]
        count, size = len(at), next(size for size in self._prefill_buckets if size >= len(at))
        self._prefill_at[:, :size] = self._upload([*at, *[(self.slots, 0)] * (size - count)]).T
        self._prefill_inputs[:count] = self._embed(pieces)
        if size in self._prefill_graphs:
            self._prefill_graphs[size]()
        else:
            self._run_prefill(size)

    def _run_prefill(self, size: int) -> None:
        backbone, (slots, positions) = self._frame.backbone, self._prefill_at[:, :size]
        backbone.forward(
            self._prefill_inputs[:size], backbone.paged_attention(slots, positions, self._state.tables), KernelPlan()
        )

    def prefilled_tokens(self, slot: int) -> int:
        """Tokens at the start of a slot's prompt that are in the cache, or will be before anything launched later."""
        return self._slots[slot].position

    @torch.inference_mode()
    def launch(self, slots: Sequence[int]) -> Pending:
        """Start one frame for each slot; the result waits for it."""
        count = len(slots)
        size = next(size for size in self._batch_buckets if size >= count)
        batch = [*slots, *[self.slots] * (size - count)]
        readback = self._readbacks[self._step_index % 2]
        self._step_index += 1
        with on_device(self.device):
            grown = self._grown(slots)
            if len(grown) > self.slots:  # a step gives a slot one block at most
                self._write_tables(grown)
                grown = []
            self._step.send(batch, grown)
            if size in self._graphs:
                self._graphs[size]()
            else:
                self._run_frame(size)
            readback.start(size)
        return partial(readback.wait, count)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Capture all graphs, largest first so that the others reuse its memory; prefill prompts; make a frame.

        Prompts of several lengths, because libraries load kernels on first use, which would stall running streams.
        """
        with on_device(self.device):
            if self._is_cuda:
                recorder = GraphRecorder()
                self._frame.compile({size: self._kernel_plan(size) for size in self._batch_buckets})
                self._prefill_at[0] = self.slots  # all rows are padding meanwhile
                for size in reversed(self._prefill_buckets):
                    self._prefill_graphs[size], _ = recorder(partial(self._run_prefill, size))
                for size in reversed(self._batch_buckets):
                    self._graphs[size], _ = recorder(partial(self._run_frame, size))
        longest = min(self._max_prefill_tokens + 1, self.max_seq_len, self.blocks * BLOCK_TOKENS)
        for length in sorted({1 << bit for bit in range(1, longest.bit_length())} | {longest}):
            tokens = np.zeros((length, self._model.part.codebooks + 1), dtype=np.int64)
            prompt = Prompt(tokens, np.ones_like(tokens, dtype=bool), length, 0)
            self.begin(0, prompt, Sampling(top_k=1), BlockTable(list(range(blocks_for(length)))))
            while not self.prefill([0]):
                pass
            if length < longest:
                self.release(0)
        self._step.send(
            [0], [(0, 0, 0)]
        )  # as it is; kernels are loaded on first use, which would stall running streams
        self.launch([0])()
        self.release(0)

    def _run_frame(self, size: int) -> None:
        self._frame.run(self._step.batch[:size], self._codes[:size], self._splits(size), self._kernel_plan(size))

    def _splits(self, size: int) -> int:
        """Context splits that give every multiprocessor two programs at a small batch."""
        if not self._is_cuda:
            return 1
        wanted = 2 * torch.cuda.get_device_properties(self.device).multi_processor_count
        return max(1, min(_MAX_SPLITS, wanted // (size * self._model.part.backbone.kv_heads)))

    def _blocks_that_fit(self, shape: LlamaShape) -> int:
        """Blocks for the longest request in every slot, as far as free memory goes."""
        wanted = self.slots * blocks_for(shape.max_seq_len)
        if not self._is_cuda:
            return wanted
        free, _ = torch.cuda.mem_get_info(self.device)
        return max(
            blocks_for(shape.max_seq_len), min(wanted, int(free * _MEMORY_SHARE) // block_bytes(shape, self.dtype))
        )

    def _grown(self, slots: Sequence[int] | dict[int, None]) -> list[Entry]:
        """Table entries that these slots have got since the last call, which are to be uploaded."""
        added: list[Entry] = []
        for slot in slots:
            held = self._slots[slot]
            blocks = held.table.blocks
            if len(blocks) > held.uploaded_blocks:
                added += [(slot, index, blocks[index]) for index in range(held.uploaded_blocks, len(blocks))]
                held.uploaded_blocks = len(blocks)
        return added

    def _write_tables(self, entries: list[Entry]) -> None:
        if entries:
            slot_index, table_index, block = self._upload(entries).unbind(1)
            self._state.tables.index_put_((slot_index, table_index), block.int())

    def _upload_state(self, slots: Sequence[int]) -> None:
        """Upload the first step's inputs of slots whose prompts are prefilled."""
        state, held = self._state, [self._slots[slot] for slot in slots]
        last = [
            (slot, len(each.prompt.tokens) - 1, len(each.prompt.tokens)) for slot, each in zip(slots, held, strict=True)
        ]
        index = self._upload(list(slots))
        values = self._upload([
            [
                len(each.prompt.tokens) - 1,
                each.prompt.generated_frames,
                each.sampling.seed - (each.sampling.seed >> 63 << 64),  # the same 64 bits as a signed number
                each.sampling.top_k,
            ]
            for each in held
        ])  # fmt: skip
        state.numbers.index_copy_(1, index, values.T)
        state.temperature.index_copy_(0, index, self._upload([each.sampling.temperature for each in held]))
        state.next_inputs.index_copy_(0, index, self._embed(last))

    def _embed(self, pieces: Sequence[tuple[int, int, int]]) -> Tensor:
        """Embeddings of parts of prompts, (slot, start, stop) each, concatenated: [N, D] fp32."""
        prompts = [(self._slots[slot].prompt, slice(start, stop)) for slot, start, stop in pieces]
        tokens = self._upload(np.concatenate([prompt.tokens[part] for prompt, part in prompts]))
        mask = self._upload(np.concatenate([prompt.mask[part] for prompt, part in prompts]))
        return self._model.embed_tokens(tokens, mask).float()

    def _upload(self, values: list | np.ndarray) -> Tensor:
        """To the device without a wait. Floats become fp32."""
        array = np.asarray(values)
        return self._staging.upload(array.astype(np.float32) if array.dtype == np.float64 else array)


class _Readback:
    """Page-locked memory for a step's codes."""

    def __init__(self, codes: Tensor, sizes: Sequence[int]):
        """codes: [B, K] on the device. sizes: of batches."""
        is_cuda = codes.device.type == "cuda"
        host = torch.zeros(codes.shape, dtype=codes.dtype, pin_memory=is_cuda)
        self._codes, self._copies = host.numpy(), {size: (host[:size], codes[:size]) for size in sizes}
        self._landed = torch.cuda.Event(blocking=True) if is_cuda else None  # blocking: waits without spinning

    def start(self, size: int) -> None:
        """Copy the codes of a batch, once all that was launched is done."""
        host, codes = self._copies[size]
        host.copy_(codes, non_blocking=True)
        if self._landed is not None:
            self._landed.record()

    def wait(self, count: int) -> np.ndarray:
        """The first rows of the batch: [count, K]."""
        if self._landed is not None:
            self._landed.synchronize()
        return self._codes[:count]
