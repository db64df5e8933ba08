"""The runner for CUDA devices: a whole frame is one captured graph, and the host stays a step ahead.

Satisfies runner_api.Runner. There is a graph for each batch size in `sizes`; a batch takes the
smallest that holds it, the rest is idle rows. A graph reads which slots it serves, and all that is
theirs, from tables on the device (frame.State); between two frames only changes to them are sent.
Everything goes through one stream, so a slot's next owner comes after its last frame without waiting
for it. Codes come back through pinned memory; only asking for them waits for the device.

Prefill packs the prompts of several slots into one pass of at most `prefill_rows` rows between two frames,
captured too, for a few numbers of rows; what is left over are rows of nobody's. Rows are computed together with whatever shares their pass or batch, so results
may differ in the last bits with the company a request keeps; its noise does not.

On a CPU device the same code runs without capture and with the plain operations, for tests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.bundle import LlamaShape
from services.backbone.blocks import BLOCK_ROWS, Table, blocks_for
from services.backbone.cache import block_bytes
from services.backbone.frame import Frame, State
from services.backbone.kernels import operations_for
from services.backbone.model import CsmModel
from services.backbone.prompt import Prompt
from services.backbone.runner_api import Pending
from services.backbone.scheduler import Sampling
from services.backbone.stack import Launches

_SIZES = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 640, 768, 896, 1024)
_MOST_SPLITS = 16
_MEMORY_SHARE = 0.85  # of what is free once the weights are there; graphs, prefill and the depth cache take the rest


def launches_for(size: int) -> Launches:
    """The fastest kernels for a batch size, by tests/bench/bench_variants.py."""
    if size == 1:
        return Launches(products=True, overlap=True)
    return Launches(gated=size >= 64)


@dataclass
class _Slot:
    prompt: Prompt
    sampling: Sampling
    table: Table
    position: int  # prompt rows read
    sent_blocks: int = 0  # blocks of the table that the device knows


class GraphRunner:
    """See runner_api.Runner."""

    frames_ahead = 1
    share_rows = BLOCK_ROWS  # what prompts may share is a multiple of this many rows

    def __init__(
        self,
        model: CsmModel,
        *,
        slots: int,
        blocks: int | None = None,
        prefill_rows: int = 512,
        sizes: Sequence[int] = _SIZES,
        launches: Callable[[int], Launches] = launches_for,
    ):
        """
        slots: requests that can be under way at once.
        blocks: of the cache; None is as many as all slots can fill, or as most of the free memory holds.
        prefill_rows: most prompt rows that one call of prefill() reads, of all slots together.
        sizes: batch sizes to make graphs for; `slots` itself is always one.
        launches: which kernels the frames of a batch size are made of.
        """
        part, weight = model.part, model.codebook0_head.weight
        self.slots = slots
        self.max_rows = part.backbone.max_rows
        self.device, self.dtype = weight.device, weight.dtype
        self._is_cuda = self.device.type == "cuda"
        self.blocks = self._room(part.backbone) if blocks is None else blocks
        self._model = model
        self._prefill_rows = prefill_rows
        self._launches = launches
        self._sizes = sorted({size for size in sizes if size < slots} | {slots})
        with torch.no_grad(), self._on_device():
            self._state = State(model, slots, idle_block=self.blocks)
            self._frame = Frame(
                model, self._state, blocks=self.blocks + 1, most=slots, operations=operations_for(self.device)
            )
            if any(launches(size).packed for size in self._sizes):
                self._frame.pack()
            self._batch = torch.full((slots,), slots, device=self.device)  # the slots that a step serves
            self._codes = torch.zeros(slots, part.codebooks, dtype=torch.int64, device=self.device)
            self._rows = torch.zeros(prefill_rows, part.backbone.dim, device=self.device)  # that a prefill reads
            self._rows_at = torch.zeros(
                2, prefill_rows, dtype=torch.int64, device=self.device
            )  # their slots, positions
        self._passes = sorted({prefill_rows, *(1 << bit for bit in range(5, prefill_rows.bit_length()))} - {0})
        # One for the step whose frames are waited for, one for the step after it.
        self._landings = [torch.zeros(slots, part.codebooks, dtype=torch.int64, pin_memory=self._is_cuda) for _ in "ab"]
        self._sent_batch: list[int] = []
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._prefill_graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._held: dict[int, _Slot] = {}
        self._turn = 0

    def begin(self, slot: int, prompt: Prompt, sampling: Sampling, table: Table) -> None:
        """Put a prompt into a free slot. Frames continue after those the prompt says were generated."""
        if slot in self._held or not 0 <= slot < self.slots:
            raise ValueError(f"slot {slot} is not free")
        if len(prompt.rows) > self.max_rows:
            raise ValueError(f"prompt of {len(prompt.rows)} rows, {self.max_rows} fit")
        self._held[slot] = _Slot(prompt, sampling, table, table.cached_rows)

    def release(self, slot: int) -> None:
        """The slot is free; a step under way may still write to it, before anything its next owner does."""
        self._held.pop(slot, None)

    @torch.inference_mode()
    def prefill(self, slots: Sequence[int]) -> list[int]:
        """Read up to `prefill_rows` rows of these slots' prompts in one pass. Returns: slots that can step now."""
        left, pieces, ready = self._prefill_rows, [], []
        for slot in slots:
            held = self._held[slot]
            last = len(held.prompt.rows) - 1  # left to the first step
            start, stop = held.position, min(held.position + left, last)
            if start < stop:
                pieces.append((slot, start, stop))
                left -= stop - start
                held.position = stop
            if stop == last:
                ready.append(slot)
            if not left:
                break
        with self._on_device():
            self._send_blocks(dict.fromkeys([*(slot for slot, _, _ in pieces), *ready]))
            if pieces:
                self._read(pieces)
            if ready:
                self._send_state(ready)
        return ready

    def _read(self, pieces: Sequence[tuple[int, int, int]]) -> None:
        """One pass over rows of prompts, (slot, start, stop) each. What is left of it is the idle slot's row 0."""
        places = [(slot, row) for slot, start, stop in pieces for row in range(start, stop)]
        count, size = len(places), next(size for size in self._passes if size >= len(places))
        self._rows_at[:, :size] = self._send([*places, *[(self.slots, 0)] * (size - count)]).T
        self._rows[:count] = self._embed(pieces)
        if size in self._prefill_graphs:
            self._prefill_graphs[size].replay()
        else:
            self._pass(size)

    def _pass(self, size: int) -> None:
        backbone, (slots, positions) = self._frame.backbone, self._rows_at[:, :size]
        backbone.forward(self._rows[:size], backbone.paged(slots, positions, self._state.tables), Launches())

    @torch.inference_mode()
    def launch(self, slots: Sequence[int]) -> Pending:
        """Start one frame for each slot; the frames come when they are asked for."""
        count = len(slots)
        size = next(size for size in self._sizes if size >= count)
        batch = [*slots, *[self.slots] * (size - count)]
        landing = self._landings[self._turn % 2]
        self._turn += 1
        with self._on_device():
            self._send_blocks(slots)
            if batch != self._sent_batch:
                self._batch[:size] = self._send(batch)
                self._sent_batch = batch
            if size in self._graphs:
                self._graphs[size].replay()
            else:
                self._make(size)
            landing[:count].copy_(self._codes[:count], non_blocking=True)
            landed = torch.cuda.Event(blocking=True) if self._is_cuda else None  # who waits leaves its core to others
            if landed is not None:
                landed.record()

        def collect() -> list[list[int]]:
            if landed is not None:
                landed.synchronize()
            return landing[:count].tolist()

        return collect

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Capture all graphs, the largest first, whose memory the others then use too; read prompts; make a frame.

        Prompts of several lengths, as a library's kernels are loaded when they are first used, and that
        would stall the streams beside whoever joins first.
        """
        with self._on_device():
            if self._is_cuda:
                stream, pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
                self._rows_at[0] = self.slots
                for size in reversed(self._passes):
                    self._prefill_graphs[size] = self._capture(lambda size=size: self._pass(size), stream, pool)
                for size in reversed(self._sizes):
                    self._graphs[size] = self._capture(lambda size=size: self._make(size), stream, pool)
        most = min(self._prefill_rows + 1, self.max_rows, self.blocks * BLOCK_ROWS)
        for length in sorted({1 << bit for bit in range(1, most.bit_length())} | {most}):
            rows = np.zeros((length, self._model.part.codebooks + 1), dtype=np.int64)
            prompt = Prompt(rows, np.ones_like(rows, dtype=bool), length, 0)
            self.begin(0, prompt, Sampling(top_k=1), Table(list(range(blocks_for(length)))))
            while not self.prefill([0]):
                pass
            if length < most:
                self.release(0)
        self.launch([0])()
        self.release(0)

    def _capture(
        self, work: Callable[[], None], stream: torch.cuda.Stream, pool: tuple[int, int]
    ) -> torch.cuda.CUDAGraph:
        """All rows are idle meanwhile; the kernels have to be compiled before, which capture forbids.

        One stream for all: the library keeps a workspace of 32 MiB for each stream it has worked on.
        """
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            work()
        return graph

    def _make(self, size: int) -> None:
        self._frame.make(self._batch[:size], self._codes[:size], self._splits(size), self._launches(size))

    def _splits(self, size: int) -> int:
        """Parts of the context, so that a small batch still gives every multiprocessor two programs."""
        if not self._is_cuda:
            return 1
        wanted = 2 * torch.cuda.get_device_properties(self.device).multi_processor_count
        return max(1, min(_MOST_SPLITS, wanted // (size * self._model.part.backbone.kv_heads)))

    def _room(self, shape: LlamaShape) -> int:
        """Blocks for all rows of all slots, as far as the device's memory goes."""
        wanted = self.slots * blocks_for(shape.max_rows)
        if not self._is_cuda:
            return wanted
        free, _ = torch.cuda.mem_get_info(self.device)
        return max(blocks_for(shape.max_rows), min(wanted, int(free * _MEMORY_SHARE) // block_bytes(shape, self.dtype)))

    def _send_blocks(self, slots: Sequence[int] | dict[int, None]) -> None:
        """Tell the device of blocks that these slots have taken since it was last told."""
        news: list[tuple[int, int, int]] = []
        for slot in slots:
            held = self._held[slot]
            blocks = held.table.blocks
            if len(blocks) > held.sent_blocks:
                news += [(slot, index, blocks[index]) for index in range(held.sent_blocks, len(blocks))]
                held.sent_blocks = len(blocks)
        if news:
            at, index, block = self._send(news).unbind(1)
            self._state.tables.index_put_((at, index), block.int())

    def _send_state(self, slots: Sequence[int]) -> None:
        """Slots whose prompts have been read: what their first step reads."""
        state, held = self._state, [self._held[slot] for slot in slots]
        last = [
            (slot, len(each.prompt.rows) - 1, len(each.prompt.rows)) for slot, each in zip(slots, held, strict=True)
        ]
        index = self._send(list(slots))
        numbers = self._send([
            [
                len(each.prompt.rows) - 1,
                each.prompt.generated_frames,
                each.sampling.seed - (each.sampling.seed >> 63 << 64),  # the same 64 bits as a signed number
                each.sampling.top_k,
            ]
            for each in held
        ])  # fmt: skip
        for column, table in enumerate((state.positions, state.frames, state.seeds, state.top_k)):
            table.index_copy_(0, index, numbers[:, column])
        state.temperature.index_copy_(0, index, self._send([each.sampling.temperature for each in held]))
        state.next_rows.index_copy_(0, index, self._embed(last))

    def _embed(self, pieces: Sequence[tuple[int, int, int]]) -> Tensor:
        """Rows of prompts, (slot, start, stop) each, one after another: [N, D] fp32."""
        prompts = [(self._held[slot].prompt, slice(start, stop)) for slot, start, stop in pieces]
        rows = self._send(np.concatenate([prompt.rows[part] for prompt, part in prompts]))
        mask = self._send(np.concatenate([prompt.mask[part] for prompt, part in prompts]))
        return self._model.embed_rows(rows, mask).float()

    def _send(self, numbers: list | np.ndarray) -> Tensor:
        """To the device without waiting for it: from pinned memory, which is kept until the copy is done."""
        tensor = torch.as_tensor(numbers)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self._is_cuda else tensor

    def _on_device(self) -> contextlib.AbstractContextManager:
        """The engine's thread may have another device current; kernels go to the current one."""
        return torch.cuda.device(self.device) if self._is_cuda else contextlib.nullcontext()
