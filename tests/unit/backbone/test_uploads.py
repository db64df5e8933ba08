"""What goes to the device between two steps: on a CPU, where a copy is done at once."""

import numpy as np
import pytest
import torch

from services.backbone.frame_step import SlotState
from services.backbone.model import build_model, init_random
from services.backbone.staging import Staging
from services.backbone.step_upload import StepUpload
from support.generator_parts import TINY


@pytest.fixture
def state():
    return SlotState(init_random(build_model(TINY), 1), slots=5, padding_block=77)


def test_batches_and_grown_tables_get_there(state):
    upload = StepUpload(state)
    assert upload.batch.tolist() == [5] * 5
    expected = state.tables.clone()
    random = np.random.default_rng(1)
    for turn in range(40):
        batch = random.permutation(5)[: 1 + turn % 5].tolist()
        grown = [(slot, turn % 4, int(random.integers(70))) for slot in batch if random.random() < 0.5]
        for slot, index, block in grown:
            expected[slot, index] = block
        upload.send(batch, grown)
        assert upload.batch[: len(batch)].tolist() == batch
        assert torch.equal(state.tables, expected)


def test_nothing_new_is_not_sent(state):
    upload = StepUpload(state)
    upload.send([3, 1], [])
    upload.batch.fill_(-1)
    upload.send([3, 1], [])
    assert upload.batch.tolist() == [-1] * 5
    upload.send([3, 1], [(1, 2, 9)])  # as large as the one that it was sent with
    assert upload.batch[:2].tolist() == [3, 1] and state.tables[1, 2] == 9


def test_every_table_may_grow_at_once(state):
    StepUpload(state).send([0, 1, 2, 3, 4], [(slot, 3, 10 + slot) for slot in range(5)])
    assert state.tables[:, 3].tolist() == [10, 11, 12, 13, 14, 77]


def test_arrays_keep_their_numbers_while_the_memory_is_used_again():
    staging = Staging(torch.device("cpu"), part_bytes=1 << 10)
    random = np.random.default_rng(2)
    arrays = [random.integers(0, 9, random.integers(1, 40, 2)).astype(kind) for kind in ("i8", "f4", "?") * 30]
    assert max(each.nbytes for each in arrays) > 1 << 10  # one that does not fit is sent all the same
    tensors = [staging.upload(each) for each in arrays]
    for each, tensor in zip(arrays, tensors, strict=True):
        assert tensor.numpy().dtype == each.dtype and np.array_equal(tensor.numpy(), each)
