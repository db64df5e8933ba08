"""What changes between two steps, on its way to the device: which slots step, and the blocks they have got since.

Every call of torch lets go of Python's lock, and with a busy event loop may wait for it up to 5 ms. So all of it is one
copy, and one write to the tables when any has grown.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch

from services.backbone.frame_step import SlotState

Entry = tuple[int, int, int]  # of a slot's table: (slot, index, block)


class StepUpload:
    """Two turns of page-locked memory: that of step n is written again for step n + 2, when step n has been read.

    batch: [slots] int64 on the device, the slots of the next step.
    """

    def __init__(self, state: SlotState):
        slots, self._state = state.slots, state
        device, is_cuda = state.tables.device, state.tables.device.type == "cuda"
        # The batch; places in the tables, in a row; blocks, as int32.
        sizes = slots, slots, -(-slots // 2)
        self._hosts = [torch.zeros(sum(sizes), dtype=torch.int64, pin_memory=is_cuda) for _ in "ab"]
        self._device = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        self._words = [host.numpy().data for host in self._hosts]
        self._blocks = [host[2 * slots :].view(torch.int32).numpy().data for host in self._hosts]
        self.batch, self._places = self._device[:slots], self._device[slots : 2 * slots]
        self._new_blocks = self._device[2 * slots :].view(torch.int32)[:slots]
        self.batch.fill_(slots)
        self._tables, self._width = state.tables.view(-1), state.tables.shape[1]
        # What is written where nothing has grown: the padding slot's own first block.
        self._padding = slots * self._width, int(state.tables[slots, 0])
        self._sent: list[int] = []
        self._turn = 0

    def send(self, batch: list[int], grown: Sequence[Entry]) -> None:
        """batch: slots, `slots` at most. grown: new entries of tables, as many at most."""
        if not grown and batch == self._sent:
            return
        self._turn = 1 - self._turn
        words, blocks, slots = self._words[self._turn], self._blocks[self._turn], self._state.slots
        words[: len(batch)] = array("l", batch)
        if grown:
            missing = slots - len(grown)
            place, block = self._padding
            places = [slot * self._width + index for slot, index, _ in grown]
            words[slots : 2 * slots] = array("l", places + [place] * missing)
            blocks[:slots] = array("i", [each for _, _, each in grown] + [block] * missing)
        self._device.copy_(self._hosts[self._turn], non_blocking=True)
        self._sent = batch
        if grown:
            self._tables.index_copy_(0, self._places, self._new_blocks)
